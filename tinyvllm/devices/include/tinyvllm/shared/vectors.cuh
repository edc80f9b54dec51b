// Eight bfloat16 in the 16 bytes of one load, as floats and back; four sums in one.
#pragma once

/// The four registers of a vector by index; with a constant index no memory is used.
TINYVLLM_DEVICE uint32_t word(const uint4& vector, int i) {
    return i == 0 ? vector.x : i == 1 ? vector.y : i == 2 ? vector.z : vector.w;
}

/// The eight floats of a vector, in memory order.
TINYVLLM_DEVICE void unpack8(float (&out)[8], const uint4& vector) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack_bf16(word(vector, i));
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
    }
}

/// Eight floats rounded to bfloat16, in memory order.
TINYVLLM_DEVICE uint4 pack8(const float (&x)[8]) {
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

TINYVLLM_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

TINYVLLM_DEVICE void add4(float4& sum, const float4& x) {
    sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
}
