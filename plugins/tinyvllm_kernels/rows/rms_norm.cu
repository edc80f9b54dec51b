// Root-mean-square normalisation of rows.
//   Formula    out[t][e] = x[t][e] / sqrt(mean over e of x[t][e]^2 + eps) * weight[e]
//   Reference  tinyvllm/reference/rms_norm.py
//   Shapes     out, x [T, E], weight [E] bfloat16; E % 8 == 0 (SIZE_E). With ROW_STRIDE, a multiple of 8, rows begin so
//              far apart: columns of a wider matrix
//   Mapping    a block owns a row; a thread holds 8 neighbours, and those THREADS vectors further on
//   Numerics   float32 throughout; rounds once, to bfloat16
//   Traffic    4 E bytes a token; latency for a few rows, bandwidth for many
#include "tinyvllm/prelude.cuh"
#include "tinyvllm/shared/vectors.cuh"

#ifndef ROW_STRIDE
#define ROW_STRIDE SIZE_E
#endif

constexpr int num_vectors = SIZE_E / 8;
constexpr int num_steps = ceil_div(num_vectors, THREADS);

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(bf16* out, const bf16* x, const bf16* weight, float eps) {
    __shared__ float scratch[32];
    const size_t row = size_t(blockIdx.x) * ROW_STRIDE;
    uint4 scale[num_steps], values[num_steps];
#pragma unroll
    for (int step = 0; step < num_steps; ++step) {
        const int vector = step * THREADS + int(threadIdx.x);
        scale[step] = make_uint4(0, 0, 0, 0);
        if (vector < num_vectors) scale[step] = load16_constant(weight + vector * 8);
    }
    pdl_launch_dependents();
    pdl_wait();  // x is the predecessor's
    float squares = 0.0f;
#pragma unroll
    for (int step = 0; step < num_steps; ++step) {
        const int vector = step * THREADS + int(threadIdx.x);
        values[step] = make_uint4(0, 0, 0, 0);
        if (vector < num_vectors) values[step] = load16(x + row + vector * 8);
        float v[8];
        unpack8(v, values[step]);
#pragma unroll
        for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
    }
    const float rstd = 1.0f / sqrtf(block_sum(squares, scratch) * (1.0f / SIZE_E) + eps);
#pragma unroll
    for (int step = 0; step < num_steps; ++step) {
        const int vector = step * THREADS + int(threadIdx.x);
        if (vector >= num_vectors) continue;
        float v[8], w[8];
        unpack8(v, values[step]);
        unpack8(w, scale[step]);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = v[i] * rstd * w[i];
        store16(out + row + vector * 8, pack8(v));
    }
}
