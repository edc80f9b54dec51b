// Each element divided by the sum of all, in one launch: a barrier over the grid between the two passes.
//   Formula    out[i] = x[i] / sum over j of x[j]
//   Reference  numpy
//   Shapes     out, x [N], partial [gridDim.x] float32, state [1] uint32, zero
//   Mapping    a thread owns every (gridDim.x blockDim.x)-th element
//   Numerics   float32 sums
//   Traffic    12 bytes per element; bandwidth
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(128)
    divide_by_sum(float* out, float* partial, uint32_t* state, const float* x, int size) {
    __shared__ float scratch[32];
    const int first = blockIdx.x * blockDim.x + threadIdx.x, stride = gridDim.x * blockDim.x;
    float sum = 0.0f;
    for (int i = first; i < size; i += stride) sum += x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == blockDim.x - 1) partial[blockIdx.x] = sum;  // any thread may: the barrier publishes for all
    grid_barrier(state);  // the partial sums of all blocks are there before any block adds them up
    sum = 0.0f;
    for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, scratch);
    for (int i = first; i < size; i += stride) out[i] = x[i] / sum;
}

/// The same by the last block to finish: no barrier, an ordinary launch.
extern "C" __global__ void __launch_bounds__(128)
    sum_by_last_block(float* out, float* partial, uint32_t* counter, const float* x, int size) {
    __shared__ float scratch[32];
    __shared__ bool is_last;
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) sum += x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        is_last = is_last_arrival(counter, gridDim.x);
    }
    __syncthreads();  // all threads know whether theirs is the last block
    if (!is_last) return;
    sum = 0.0f;
    for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[0] = sum;
}
