// Addition to the residual stream.
//   Formula    residual[i] += x[i]
//   Reference  tinyvllm/reference/add.py
//   Shapes     residual, x [T, E] bfloat16; E % 8 == 0; num_vectors = T E / 8
//   Mapping    a thread owns 8 neighbours
//   Numerics   float32 sum; rounds once, to bfloat16
//   Traffic    6 E bytes a token; bandwidth
#include "tinyvllm/prelude.cuh"
#include "tinyvllm/shared/vectors.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) add(bf16* residual, const bf16* x, int num_vectors) {
    const int vector = int(blockIdx.x) * THREADS + int(threadIdx.x);
    pdl_launch_dependents();
    pdl_wait();  // both are predecessors'
    if (vector >= num_vectors) return;
    float sum[8], more[8];
    unpack8(sum, load16(residual + size_t(vector) * 8));
    unpack8(more, load16(x + size_t(vector) * 8));
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += more[i];
    store16(residual + size_t(vector) * 8, pack8(sum));
}
