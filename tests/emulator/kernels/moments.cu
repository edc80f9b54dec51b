// Mean and variance of each row, in two passes.
//   Formula    out[r] = (mean of x[r], mean of (x[r] - mean)^2)
//   Reference  numpy.mean, numpy.var
//   Shapes     out [R, 2] float32, x [R, C] bfloat16
//   Mapping    a block owns a row, a thread every blockDim-th column
//   Numerics   float32 sums, in the order of the reduction tree
//   Traffic    4 C bytes per row, half of them from L1; bandwidth
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(256) row_moments(float* out, const bf16* x, int num_columns) {
    __shared__ float scratch[32];
    const bf16* row = x + size_t(blockIdx.x) * num_columns;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < num_columns; c += blockDim.x) sum += to_float(row[c]);
    const float mean = block_sum(sum, scratch) / float(num_columns);
    sum = 0.0f;
    for (int c = threadIdx.x; c < num_columns; c += blockDim.x) {
        const float deviation = to_float(row[c]) - mean;
        sum += deviation * deviation;
    }
    const float variance = block_sum(sum, scratch) / float(num_columns);
    if (threadIdx.x == 0) {
        out[2 * blockIdx.x] = mean;
        out[2 * blockIdx.x + 1] = variance;
    }
}
