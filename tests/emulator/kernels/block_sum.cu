// Sum of each row.
//   Formula    out[r] = sum over c of x[r][c]
//   Reference  numpy.sum
//   Shapes     out [R] float32, x [R, C] bfloat16
//   Mapping    a block owns a row, a thread every blockDim-th column
//   Numerics   float32 sums, in the order of the reduction tree
//   Traffic    2 C bytes per row; bandwidth
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(256) block_sum_rows(float* out, const bf16* x, int num_columns) {
    __shared__ float scratch[32];
    const bf16* row = x + size_t(blockIdx.x) * num_columns;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < num_columns; c += blockDim.x) sum += to_float(row[c]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
