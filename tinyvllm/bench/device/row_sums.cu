// Two reductions over a block, for what a turn of a thread costs on the emulator.
//   Formula    out[r] = (sum of x[r], sum of x[r]^2)
//   Reference  numpy.sum
//   Shapes     out [R, 2] float32, x [R, C] bfloat16
//   Mapping    a block owns a row, a thread every blockDim-th column
//   Numerics   float32 sums, in the order of the reduction tree
//   Traffic    4 C bytes per row, half of them from L1; bandwidth
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(256) row_sums(float* out, const bf16* x, int num_columns) {
    __shared__ float scratch[32];
    const bf16* row = x + size_t(blockIdx.x) * num_columns;
    float sum = 0.0f, squares = 0.0f;
    for (int c = threadIdx.x; c < num_columns; c += blockDim.x) {
        const float value = to_float(row[c]);
        sum += value;
        squares += value * value;
    }
    sum = block_sum(sum, scratch);
    squares = block_sum(squares, scratch);
    if (threadIdx.x == 0) {
        out[2 * blockIdx.x] = sum;
        out[2 * blockIdx.x + 1] = squares;
    }
}
