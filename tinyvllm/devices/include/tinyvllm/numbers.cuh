// bfloat16 and float16 as storage types: arithmetic is done in float, these only convert.
#pragma once

namespace tinyvllm {

struct alignas(2) bf16 {
    uint16_t bits;
};

struct alignas(2) f16 {
    uint16_t bits;
};

/// The float with exactly the value of `x`.
TINYVLLM_DEVICE float to_float(float x) { return x; }

/// The float with exactly the value of `x`: a bfloat16 is the upper half of a float.
TINYVLLM_DEVICE float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

/// The float with exactly the value of `x`.
TINYVLLM_DEVICE float to_float(f16 x) {
#if defined(TINYVLLM_EMULATOR)
    return emulator::half_to_float(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

/// Two bfloat16 in one register, rounded to nearest even: `low` in bits 0 to 15, `high` in bits 16 to 31.
TINYVLLM_DEVICE uint32_t pack_bf16(float low, float high) {
#if defined(TINYVLLM_EMULATOR)
    return uint32_t(emulator::float_to_bf16(low)) | uint32_t(emulator::float_to_bf16(high)) << 16;
#else
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

/// The two floats of a register written by `pack_bf16`: `.x` from the low half, `.y` from the high half.
TINYVLLM_DEVICE float2 unpack_bf16(uint32_t packed) {
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u));
}

/// `x` rounded to the storage type `T` (float, bf16 or f16), to nearest even.
template <class T>
TINYVLLM_DEVICE T from_float(float x);

template <>
TINYVLLM_DEVICE float from_float<float>(float x) {
    return x;
}

template <>
TINYVLLM_DEVICE bf16 from_float<bf16>(float x) {
#if defined(TINYVLLM_EMULATOR)
    return bf16{emulator::float_to_bf16(x)};
#else
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}

template <>
TINYVLLM_DEVICE f16 from_float<f16>(float x) {
#if defined(TINYVLLM_EMULATOR)
    return f16{emulator::float_to_half(x)};
#else
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}

}  // namespace tinyvllm
