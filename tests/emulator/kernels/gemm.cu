// Small-batch GEMM on tensor cores, weights as the left operand.
//   Formula    out[m][n] = sum over k of x[m][k] w[n][k]
//   Reference  numpy.matmul
//   Shapes     out [M, N] float32, x [M, K], w [N, K] bfloat16; M <= 8 a block, N % 64 == 0, K % 64 == 0
//   Mapping    a block owns 64 rows of w and 8 of x, a warp 16 rows of w; 64 of K a stage, three stages
//   Numerics   products exact, float32 sums
//   Traffic    2 N K bytes of weights; bandwidth
#include "tinyvllm/prelude.cuh"

constexpr int tile_n = 64, tile_m = 8, tile_k = 64, num_stages = 3;
constexpr int pitch = tile_k + 8;  // rows 16 bytes apart modulo 128: ldmatrix without bank conflicts

struct Stage {
    bf16 w[tile_n][pitch];
    bf16 x[tile_m][pitch];
};

__device__ void load_stage(Stage& stage, const bf16* x, const bf16* w, int num_m, int size_k, int k) {
    for (int i = threadIdx.x; i < tile_n * tile_k / 8; i += blockDim.x) {
        const int row = i / (tile_k / 8), column = i % (tile_k / 8) * 8;
        cp_async16(&stage.w[row][column], w + size_t(row) * size_k + k + column);
    }
    for (int i = threadIdx.x; i < tile_m * tile_k / 8; i += blockDim.x) {
        const int row = i / (tile_k / 8), column = i % (tile_k / 8) * 8;
        cp_async16_or_zero(&stage.x[row][column], x + size_t(row) * size_k + k + column, row < num_m);
    }
}

extern "C" __global__ void __launch_bounds__(128)
    gemm_small(float* out, const bf16* x, const bf16* w, int size_m, int size_n, int size_k) {
    Stage* stages = dynamic_shared<Stage>();
    const int first_n = blockIdx.x * tile_n, first_m = blockIdx.y * tile_m;
    const int num_m = min(tile_m, size_m - first_m), lane = lane_id(), warp = warp_id();
    x += size_t(first_m) * size_k;
    w += size_t(first_n) * size_k;

    const int num_steps = size_k / tile_k;
    for (int s = 0; s < num_stages - 1; ++s) {
        if (s < num_steps) load_stage(stages[s], x, w, num_m, size_k, s * tile_k);
        cp_async_commit();
    }
    float d[4] = {};
    for (int step = 0; step < num_steps; ++step) {
        cp_async_wait<num_stages - 2>();
        __syncthreads();  // everybody's part of this stage has landed, and everybody has read the one before it
        if (step + num_stages - 1 < num_steps)
            load_stage(stages[(step + num_stages - 1) % num_stages], x, w, num_m, size_k,
                       (step + num_stages - 1) * tile_k);
        cp_async_commit();
        const Stage& stage = stages[step % num_stages];
        for (int k = 0; k < tile_k; k += 16) {
            uint32_t a[4], b[2];
            ldmatrix_x4(a, &stage.w[warp * 16 + lane % 16][k + lane / 16 * 8]);
            ldmatrix_x2(b, &stage.x[lane % 8][k + lane / 8 % 2 * 8]);
            mma_bf16(d, a, b);
        }
    }
    for (int i = 0; i < 4; ++i) {
        const int n = warp * 16 + lane / 4 + i / 2 * 8, m = lane % 4 * 2 + i % 2;
        if (m < num_m) out[size_t(first_m + m) * size_n + first_n + n] = d[i];
    }
}
