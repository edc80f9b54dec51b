// Multiplication of rows by one number.
//   Formula    x[i] *= factor
//   Reference  tinyvllm/reference/scale.py
//   Shapes     x [T, E] bfloat16; E % 8 == 0; num_vectors = T E / 8
//   Mapping    a thread owns 8 neighbours
//   Numerics   float32 product; rounds once, to bfloat16
//   Traffic    4 E bytes a token; bandwidth
#include "tinyvllm/prelude.cuh"
#include "tinyvllm/shared/vectors.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) scale(bf16* x, float factor, int num_vectors) {
    const int vector = int(blockIdx.x) * THREADS + int(threadIdx.x);
    pdl_launch_dependents();
    pdl_wait();  // x is the predecessor's
    if (vector >= num_vectors) return;
    float values[8];
    unpack8(values, load16(x + size_t(vector) * 8));
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] *= factor;
    store16(x + size_t(vector) * 8, pack8(values));
}
