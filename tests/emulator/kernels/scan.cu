// Inclusive prefix sum of each row, one block a row.
//   Formula    out[r][c] = sum over i <= c of x[r][i]
//   Reference  numpy.cumsum
//   Shapes     out, x [R, C] int32
//   Mapping    a block owns a row, a thread one column of each chunk of blockDim columns
//   Numerics   exact
//   Traffic    8 bytes per element; bandwidth
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(1024) scan_rows(int* out, const int* x, int num_columns) {
    __shared__ int totals[32];
    __shared__ int carry;
    if (threadIdx.x == 0) carry = 0;
    for (int first = 0; first < num_columns; first += blockDim.x) {
        const int column = first + threadIdx.x;
        const size_t at = size_t(blockIdx.x) * num_columns + column;
        const int mine = warp_scan(column < num_columns ? x[at] : 0);
        if (lane_id() == 31) totals[warp_id()] = mine;
        __syncthreads();  // the totals of all warps, and the carry, are there before anybody adds them up
        int before = carry;
        for (int w = 0; w < warp_id(); ++w) before += totals[w];
        if (column < num_columns) out[at] = before + mine;
        __syncthreads();  // everybody has read totals and carry before they change
        if (threadIdx.x == blockDim.x - 1) carry = before + mine;
    }
}
