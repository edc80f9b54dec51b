// The largest and the smallest of each row.
//   Formula    out[row][warp] = (max over i of x[row][i], min over i of x[row][i]), as each warp knows them
//   Reference  numpy.max, numpy.min
//   Shapes     out [R, W, 2] float32, x [R, C] float32
//   Mapping    a block per row
//   Numerics   exact for whole numbers below 1000
//   Traffic    4 C bytes a row
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void row_maxima(float* out, const float* x, int num_columns) {
    __shared__ float scratch[32];
    float largest = -INFINITY, smallest = INFINITY;
    for (int i = thread_rank(); i < num_columns; i += num_threads()) {
        const float v = x[size_t(blockIdx.x) * num_columns + i];
        largest = fmaxf(largest, v);
        smallest = fminf(smallest, v);
    }
    largest = block_max(largest, scratch);
    smallest = 1000.0f - block_max(1000.0f - smallest, scratch);  // above all of the first reduction
    if (lane_id() == 0) {
        float* mine = out + (blockIdx.x * num_threads() / 32 + warp_id()) * 2;
        mine[0] = largest;
        mine[1] = smallest;
    }
}
