// The functions that NVRTC builds in, for the emulator: indices, barriers, shuffles, votes, atomics, arithmetic.
// Atomics are relaxed, as on a GPU: they order nothing but themselves.
#pragma once

#define threadIdx (::tinyvllm::emulator::self()->thread)
#define blockIdx (::tinyvllm::emulator::self()->geometry->block)
#define blockDim (::tinyvllm::emulator::self()->geometry->block_dim)
#define gridDim (::tinyvllm::emulator::self()->geometry->grid_dim)
#define warpSize 32
#define printf(...) ::tinyvllm::emulator::tinyvllm_print(::tinyvllm::emulator::self(), __VA_ARGS__)

TINYVLLM_INLINE void __syncthreads() { tinyvllm::emulator::tinyvllm_block_barrier(tinyvllm::emulator::self()); }
TINYVLLM_INLINE int __syncthreads_or(int p) { return tinyvllm::emulator::tinyvllm_block_vote(tinyvllm::emulator::self(), p, 0); }
TINYVLLM_INLINE int __syncthreads_and(int p) {
    return tinyvllm::emulator::tinyvllm_block_vote(tinyvllm::emulator::self(), p, 1);
}
TINYVLLM_INLINE int __syncthreads_count(int p) {
    return tinyvllm::emulator::tinyvllm_block_vote(tinyvllm::emulator::self(), p, 2);
}
TINYVLLM_INLINE void __syncwarp(uint32_t mask = 0xffffffffu) {
    using namespace tinyvllm::emulator;
    tinyvllm_collective(self(), mask, Collective::sync, 0);
}
TINYVLLM_INLINE void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
TINYVLLM_INLINE void __threadfence_block() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
TINYVLLM_INLINE void __nanosleep(unsigned) { tinyvllm::emulator::yield(); }
[[noreturn]] TINYVLLM_INLINE void __trap() { tinyvllm::emulator::fail_assert(); }

template <class T>
TINYVLLM_INLINE T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
    const int lane = tinyvllm::emulator::self()->index % 32;
    return tinyvllm::emulator::shuffle(mask, value, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <class T>
TINYVLLM_INLINE T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
    const int lane = tinyvllm::emulator::self()->index % 32;
    const int source = lane - int(delta);
    return tinyvllm::emulator::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source);
}
template <class T>
TINYVLLM_INLINE T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
    const int lane = tinyvllm::emulator::self()->index % 32;
    const int source = lane + int(delta);
    return tinyvllm::emulator::shuffle(mask, value, source >= (lane & ~(width - 1)) + width ? lane : source);
}
template <class T>
TINYVLLM_INLINE T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32) {
    const int lane = tinyvllm::emulator::self()->index % 32;
    const int source = lane ^ lane_mask;
    return tinyvllm::emulator::shuffle(mask, value, source >= (lane & ~(width - 1)) + width ? lane : source);
}
TINYVLLM_INLINE int __any_sync(uint32_t mask, int p) {
    return int(tinyvllm::emulator::vote(mask, p, tinyvllm::emulator::Collective::any));
}
TINYVLLM_INLINE int __all_sync(uint32_t mask, int p) {
    return int(tinyvllm::emulator::vote(mask, p, tinyvllm::emulator::Collective::all));
}
TINYVLLM_INLINE unsigned __ballot_sync(uint32_t mask, int p) {
    return tinyvllm::emulator::vote(mask, p, tinyvllm::emulator::Collective::ballot);
}

// Reinterpretation and integer arithmetic.
TINYVLLM_INLINE float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
TINYVLLM_INLINE float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
TINYVLLM_INLINE unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
TINYVLLM_INLINE int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
TINYVLLM_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
TINYVLLM_INLINE int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
TINYVLLM_INLINE int __ffs(int x) { return __builtin_ffs(x); }
TINYVLLM_INLINE unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
    return y;
}
TINYVLLM_INLINE unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
TINYVLLM_INLINE int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
template <class T>
TINYVLLM_INLINE T __ldg(const T* address) {
    return *address;
}

// Floating point. The fast GPU approximations are their exact namesakes here.
TINYVLLM_INLINE float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
TINYVLLM_INLINE float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
TINYVLLM_INLINE float fminf(float a, float b) { return __builtin_fminf(a, b); }
TINYVLLM_INLINE float fabsf(float a) { return __builtin_fabsf(a); }
TINYVLLM_INLINE float sqrtf(float a) { return __builtin_sqrtf(a); }
TINYVLLM_INLINE float rsqrtf(float a) { return 1.0f / __builtin_sqrtf(a); }
TINYVLLM_INLINE float expf(float a) { return __builtin_expf(a); }
TINYVLLM_INLINE float exp2f(float a) { return __builtin_exp2f(a); }
TINYVLLM_INLINE float logf(float a) { return __builtin_logf(a); }
TINYVLLM_INLINE float log2f(float a) { return __builtin_log2f(a); }
TINYVLLM_INLINE float log1pf(float a) { return __builtin_log1pf(a); }
TINYVLLM_INLINE float powf(float a, float b) { return __builtin_powf(a, b); }
TINYVLLM_INLINE float sinf(float a) { return __builtin_sinf(a); }
TINYVLLM_INLINE float cosf(float a) { return __builtin_cosf(a); }
TINYVLLM_INLINE float tanhf(float a) { return __builtin_tanhf(a); }
TINYVLLM_INLINE float erff(float a) { return __builtin_erff(a); }
TINYVLLM_INLINE float floorf(float a) { return __builtin_floorf(a); }
TINYVLLM_INLINE float ceilf(float a) { return __builtin_ceilf(a); }
TINYVLLM_INLINE float rintf(float a) { return __builtin_rintf(a); }
TINYVLLM_INLINE float copysignf(float a, float b) { return __builtin_copysignf(a, b); }
TINYVLLM_INLINE bool isnan(float a) { return __builtin_isnan(a); }
TINYVLLM_INLINE bool isinf(float a) { return __builtin_isinf(a); }
TINYVLLM_INLINE bool isfinite(float a) { return __builtin_isfinite(a); }
TINYVLLM_INLINE float __expf(float a) { return __builtin_expf(a); }
TINYVLLM_INLINE float __logf(float a) { return __builtin_logf(a); }
// The hardware multiplies by 1 / b, which it has no number for where b is above 2^126.
TINYVLLM_INLINE float __fdividef(float a, float b) {
    bool is_lost = __builtin_fabsf(b) > 0x1p126f && !isinf(b);
    return is_lost ? a * copysignf(0.0f, b) : a / b;
}
TINYVLLM_INLINE float __frcp_rn(float a) { return 1.0f / a; }
TINYVLLM_INLINE float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
TINYVLLM_INLINE void sincosf(float a, float* s, float* c) { *s = sinf(a), *c = cosf(a); }

#define TINYVLLM_MIN_MAX(T)                             \
    TINYVLLM_INLINE T min(T a, T b) { return b < a ? b : a; }    \
    TINYVLLM_INLINE T max(T a, T b) { return a < b ? b : a; }
TINYVLLM_MIN_MAX(int)
TINYVLLM_MIN_MAX(unsigned)
TINYVLLM_MIN_MAX(long)
TINYVLLM_MIN_MAX(unsigned long)
TINYVLLM_MIN_MAX(long long)
TINYVLLM_MIN_MAX(unsigned long long)
#undef TINYVLLM_MIN_MAX
TINYVLLM_INLINE float min(float a, float b) { return fminf(a, b); }
TINYVLLM_INLINE float max(float a, float b) { return fmaxf(a, b); }
TINYVLLM_INLINE int abs(int a) { return a < 0 ? -a : a; }

// Atomics.
namespace tinyvllm::emulator {
template <class T, class Update>
TINYVLLM_INLINE T atomic_update(T* address, Update update) {
    T old;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    T next = update(old);
    while (!__atomic_compare_exchange(address, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        next = update(old);
    return old;
}
}  // namespace tinyvllm::emulator

#define TINYVLLM_ATOMICS(T)                                                                                        \
    TINYVLLM_INLINE T atomicAdd(T* p, T x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }                           \
    TINYVLLM_INLINE T atomicSub(T* p, T x) { return __atomic_fetch_sub(p, x, __ATOMIC_RELAXED); }                           \
    TINYVLLM_INLINE T atomicAnd(T* p, T x) { return __atomic_fetch_and(p, x, __ATOMIC_RELAXED); }                           \
    TINYVLLM_INLINE T atomicOr(T* p, T x) { return __atomic_fetch_or(p, x, __ATOMIC_RELAXED); }                             \
    TINYVLLM_INLINE T atomicXor(T* p, T x) { return __atomic_fetch_xor(p, x, __ATOMIC_RELAXED); }                           \
    TINYVLLM_INLINE T atomicExch(T* p, T x) { return __atomic_exchange_n(p, x, __ATOMIC_RELAXED); }                         \
    TINYVLLM_INLINE T atomicMax(T* p, T x) { return tinyvllm::emulator::atomic_update(p, [x](T y) { return max(x, y); }); } \
    TINYVLLM_INLINE T atomicMin(T* p, T x) { return tinyvllm::emulator::atomic_update(p, [x](T y) { return min(x, y); }); } \
    TINYVLLM_INLINE T atomicCAS(T* p, T expected, T desired) {                                                              \
        __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);             \
        return expected;                                                                                           \
    }
TINYVLLM_ATOMICS(int)
TINYVLLM_ATOMICS(unsigned)
TINYVLLM_ATOMICS(unsigned long)
TINYVLLM_ATOMICS(unsigned long long)
#undef TINYVLLM_ATOMICS
TINYVLLM_INLINE float atomicAdd(float* p, float x) {
    return tinyvllm::emulator::atomic_update(p, [x](float y) { return x + y; });
}
TINYVLLM_INLINE float atomicExch(float* p, float x) {
    return tinyvllm::emulator::atomic_update(p, [x](float) { return x; });
}
TINYVLLM_INLINE unsigned atomicInc(unsigned* p, unsigned limit) {
    return tinyvllm::emulator::atomic_update(p, [limit](unsigned y) { return y >= limit ? 0u : y + 1u; });
}

// Conversions of the storage types, to nearest even; a NaN becomes the GPU's canonical one.
namespace tinyvllm::emulator {
TINYVLLM_INLINE uint16_t float_to_bf16(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
TINYVLLM_INLINE float half_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | (rest > 0x7c00u ? 0x7fffffffu : 0x7f800000u));
    // Shifted into a float's fields the exponent is 112 too small; the product also normalises subnormals.
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}
TINYVLLM_INLINE uint16_t float_to_half(float x) {
    const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and more round to infinity
    if (size < 0x38800000u)                                    // below 2^-14: steps of 2^-24, rounded by the addition
        return uint16_t(sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u));
    return uint16_t(sign | ((size + 0xfffu + (size >> 13 & 1u)) - 0x38000000u) >> 13);
}
}  // namespace tinyvllm::emulator
