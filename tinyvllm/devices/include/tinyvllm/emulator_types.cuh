// The types that NVRTC builds in: fixed-width integers, dim3 and the short vectors, with a GPU's alignments.
#pragma once

typedef __INT8_TYPE__ int8_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __INT16_TYPE__ int16_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef __SIZE_TYPE__ size_t;

// Always inlined: the address that the runtime returns to, and so the line that a report names, is the kernel's own.
#define TINYVLLM_INLINE inline __attribute__((always_inline))

#define __device__
#define __host__
#define __constant__
#define __forceinline__ TINYVLLM_INLINE
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#define TINYVLLM_VECTORS(T, NAME)                                                                \
    struct alignas(2 * sizeof(T)) NAME##2 {                                                      \
        T x, y;                                                                                  \
    };                                                                                           \
    struct NAME##3 {                                                                             \
        T x, y, z;                                                                               \
    };                                                                                           \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) NAME##4 {                            \
        T x, y, z, w;                                                                            \
    };                                                                                           \
    TINYVLLM_INLINE NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                   \
    TINYVLLM_INLINE NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                           \
    TINYVLLM_INLINE NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

TINYVLLM_VECTORS(float, float)
TINYVLLM_VECTORS(int, int)
TINYVLLM_VECTORS(unsigned, uint)
TINYVLLM_VECTORS(short, short)
TINYVLLM_VECTORS(unsigned short, ushort)
#undef TINYVLLM_VECTORS
