// The functions that NVRTC builds in, for the emulator: indices, barriers, shuffles, votes, atomics, arithmetic.
// Atomics are relaxed, as on a GPU: they order nothing but themselves.
#pragma once

#define threadIdx (::tinyvllm::emulator::self()->thread)
#define blockIdx (::tinyvllm::emulator::self()->geometry->block)
#define blockDim (::tinyvllm::emulator::self()->geometry->block_dim)
#define gridDim (::tinyvllm::emulator::self()->geometry->grid_dim)
#define warpSize 32

inline void __syncthreads() { tinyvllm::emulator::tinyvllm_block_barrier(tinyvllm::emulator::self()); }
inline int __syncthreads_or(int p) { return tinyvllm::emulator::tinyvllm_block_vote(tinyvllm::emulator::self(), p, 0); }
inline int __syncthreads_and(int p) {
    return tinyvllm::emulator::tinyvllm_block_vote(tinyvllm::emulator::self(), p, 1);
}
inline int __syncthreads_count(int p) {
    return tinyvllm::emulator::tinyvllm_block_vote(tinyvllm::emulator::self(), p, 2);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
    using namespace tinyvllm::emulator;
    tinyvllm_collective(self(), mask, Collective::sync, 0);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { tinyvllm::emulator::yield(); }
[[noreturn]] inline void __trap() { tinyvllm::emulator::fail_assert(); }

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
    const int lane = tinyvllm::emulator::self()->index % 32;
    return tinyvllm::emulator::shuffle(mask, value, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
    const int lane = tinyvllm::emulator::self()->index % 32;
    const int source = lane - int(delta);
    return tinyvllm::emulator::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
    const int lane = tinyvllm::emulator::self()->index % 32;
    const int source = lane + int(delta);
    return tinyvllm::emulator::shuffle(mask, value, source >= (lane & ~(width - 1)) + width ? lane : source);
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32) {
    const int lane = tinyvllm::emulator::self()->index % 32;
    const int source = lane ^ lane_mask;
    return tinyvllm::emulator::shuffle(mask, value, source >= (lane & ~(width - 1)) + width ? lane : source);
}
inline int __any_sync(uint32_t mask, int p) {
    return int(tinyvllm::emulator::vote(mask, p, tinyvllm::emulator::Collective::any));
}
inline int __all_sync(uint32_t mask, int p) {
    return int(tinyvllm::emulator::vote(mask, p, tinyvllm::emulator::Collective::all));
}
inline unsigned __ballot_sync(uint32_t mask, int p) {
    return tinyvllm::emulator::vote(mask, p, tinyvllm::emulator::Collective::ballot);
}

// Reinterpretation and integer arithmetic.
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
    return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
template <class T>
inline T __ldg(const T* address) {
    return *address;
}

// Floating point. The fast GPU approximations are their exact namesakes here.
inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
inline float fabsf(float a) { return __builtin_fabsf(a); }
inline float sqrtf(float a) { return __builtin_sqrtf(a); }
inline float rsqrtf(float a) { return 1.0f / __builtin_sqrtf(a); }
inline float expf(float a) { return __builtin_expf(a); }
inline float exp2f(float a) { return __builtin_exp2f(a); }
inline float logf(float a) { return __builtin_logf(a); }
inline float log2f(float a) { return __builtin_log2f(a); }
inline float log1pf(float a) { return __builtin_log1pf(a); }
inline float powf(float a, float b) { return __builtin_powf(a, b); }
inline float sinf(float a) { return __builtin_sinf(a); }
inline float cosf(float a) { return __builtin_cosf(a); }
inline float tanhf(float a) { return __builtin_tanhf(a); }
inline float erff(float a) { return __builtin_erff(a); }
inline float floorf(float a) { return __builtin_floorf(a); }
inline float ceilf(float a) { return __builtin_ceilf(a); }
inline float rintf(float a) { return __builtin_rintf(a); }
inline float copysignf(float a, float b) { return __builtin_copysignf(a, b); }
inline bool isnan(float a) { return __builtin_isnan(a); }
inline bool isinf(float a) { return __builtin_isinf(a); }
inline bool isfinite(float a) { return __builtin_isfinite(a); }
inline float __expf(float a) { return __builtin_expf(a); }
inline float __logf(float a) { return __builtin_logf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline void sincosf(float a, float* s, float* c) { *s = sinf(a), *c = cosf(a); }

#define TINYVLLM_MIN_MAX(T)                             \
    inline T min(T a, T b) { return b < a ? b : a; }    \
    inline T max(T a, T b) { return a < b ? b : a; }
TINYVLLM_MIN_MAX(int)
TINYVLLM_MIN_MAX(unsigned)
TINYVLLM_MIN_MAX(long)
TINYVLLM_MIN_MAX(unsigned long)
TINYVLLM_MIN_MAX(long long)
TINYVLLM_MIN_MAX(unsigned long long)
#undef TINYVLLM_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline int abs(int a) { return a < 0 ? -a : a; }

// Atomics.
namespace tinyvllm::emulator {
template <class T, class Update>
inline T atomic_update(T* address, Update update) {
    T old;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    T next = update(old);
    while (!__atomic_compare_exchange(address, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        next = update(old);
    return old;
}
}  // namespace tinyvllm::emulator

#define TINYVLLM_ATOMICS(T)                                                                                        \
    inline T atomicAdd(T* p, T x) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }                           \
    inline T atomicSub(T* p, T x) { return __atomic_fetch_sub(p, x, __ATOMIC_RELAXED); }                           \
    inline T atomicAnd(T* p, T x) { return __atomic_fetch_and(p, x, __ATOMIC_RELAXED); }                           \
    inline T atomicOr(T* p, T x) { return __atomic_fetch_or(p, x, __ATOMIC_RELAXED); }                             \
    inline T atomicXor(T* p, T x) { return __atomic_fetch_xor(p, x, __ATOMIC_RELAXED); }                           \
    inline T atomicExch(T* p, T x) { return __atomic_exchange_n(p, x, __ATOMIC_RELAXED); }                         \
    inline T atomicMax(T* p, T x) { return tinyvllm::emulator::atomic_update(p, [x](T y) { return max(x, y); }); } \
    inline T atomicMin(T* p, T x) { return tinyvllm::emulator::atomic_update(p, [x](T y) { return min(x, y); }); } \
    inline T atomicCAS(T* p, T expected, T desired) {                                                              \
        __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);             \
        return expected;                                                                                           \
    }
TINYVLLM_ATOMICS(int)
TINYVLLM_ATOMICS(unsigned)
TINYVLLM_ATOMICS(unsigned long)
TINYVLLM_ATOMICS(unsigned long long)
#undef TINYVLLM_ATOMICS
inline float atomicAdd(float* p, float x) {
    return tinyvllm::emulator::atomic_update(p, [x](float y) { return x + y; });
}
inline float atomicExch(float* p, float x) {
    return tinyvllm::emulator::atomic_update(p, [x](float) { return x; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
    return tinyvllm::emulator::atomic_update(p, [limit](unsigned y) { return y >= limit ? 0u : y + 1u; });
}

// Conversions of the storage types, to nearest even; a NaN becomes the GPU's canonical one.
namespace tinyvllm::emulator {
inline uint16_t float_to_bf16(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline float half_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | (rest > 0x7c00u ? 0x7fffffffu : 0x7f800000u));
    // Shifted into a float's fields the exponent is 112 too small; the product also normalises subnormals.
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}
inline uint16_t float_to_half(float x) {
    const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and more round to infinity
    if (size < 0x38800000u)                                    // below 2^-14: steps of 2^-24, rounded by the addition
        return uint16_t(sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u));
    return uint16_t(sign | ((size + 0xfffu + (size >> 13 & 1u)) - 0x38000000u) >> 13);
}
}  // namespace tinyvllm::emulator
