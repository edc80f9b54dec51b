// Transpose through a shared tile.
//   Formula    out[c][r] = x[r][c]
//   Reference  numpy.transpose
//   Shapes     out [C, R], x [R, C], float32
//   Mapping    a block of 32 x 8 threads owns a tile of 32 x 32, a warp four of its rows
//   Numerics   none
//   Traffic    8 bytes per element; bandwidth
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(256) transpose(float* out, const float* x, int num_rows, int num_columns) {
    __shared__ float tile[32][33];  // one column more, so that a column lies in 32 banks
    const int lane = threadIdx.x;
    for (int first_row = blockIdx.y * 32; first_row < num_rows; first_row += gridDim.y * 32) {
        const int column = blockIdx.x * 32 + lane;
        for (int i = threadIdx.y; i < 32; i += blockDim.y)
            if (first_row + i < num_rows && column < num_columns)
                tile[i][lane] = x[size_t(first_row + i) * num_columns + column];
        __syncthreads();  // the tile is complete before other warps read its columns
        const int row = first_row + lane;
        for (int i = threadIdx.y; i < 32; i += blockDim.y)
            if (row < num_rows && blockIdx.x * 32 + i < num_columns)
                out[size_t(blockIdx.x * 32 + i) * num_rows + row] = tile[lane][i];
        __syncthreads();  // every warp has read the tile before the next one overwrites it
    }
}
