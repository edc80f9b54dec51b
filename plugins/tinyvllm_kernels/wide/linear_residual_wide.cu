// A linear layer added to the residual stream, from 33 rows on, for Hopper.
//   Formula    residual[t][n] += sum over k of x[t][k] weight[n][k] + bias[n]
//   Reference  compose of linear_residual in tinyvllm/ops/catalogue.py
//   Shapes     residual [T, N], x [T, K], weight [N, K], bias [N] or null, bfloat16; K % 8 == 0 (SIZE_K), N % 8 == 0
//   Mapping    a block has TILE_ROWS weight rows and a part of K; see gemm_wide_core.cuh. Sums go through shared
//              memory, so that a thread adds eight neighbours to the residual
//   Numerics   products exact, float32 sums, the residual included; rounds once
//   Traffic    2 N K bytes of weights, and from L2 2 BATCH_ROWS K bytes of x for each TILE_ROWS of N; bandwidth
#include "tinyvllm/prelude.cuh"
#include "gemm_wide_core.cuh"

constexpr int row_vectors = TILE_ROWS / 8;

/// Rows that are four floats more apart than a multiple of the banks: lanes that write one column find different ones.
using Outputs = float[wide::part_rows][TILE_ROWS + 4];
static_assert(sizeof(Outputs) <= sizeof(wide::Stage) * NUM_STAGES, "they take the ring's place");

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_residual_wide(bf16* residual, float* workspace, uint32_t* counters,
                         const __grid_constant__ TensorMap weight_map, const __grid_constant__ TensorMap x_map,
                         const bf16* bias, int num_rows, int num_outputs) {
    wide::Shared& shared = *dynamic_shared<wide::Shared>();
    const int first_output = int(blockIdx.z) * TILE_ROWS;
    const int first_row = int(blockIdx.x) * BATCH_ROWS + int(blockIdx.y) * wide::part_rows;
    const auto start_weights = [&](void* to, uint64_t* barrier, int k) {
        tensor_copy_once(to, weight_map, barrier, first_output, k);
    };
    wide::Sums sums;
    wide::project(sums, shared, x_map, start_weights);
    pdl_wait();  // the residual is read and the workspace written after the predecessor, by this thread's own wait
    wide::Part part;
    wide::exchange(part, sums, workspace, counters);
    Outputs& outputs = *reinterpret_cast<Outputs*>(&shared);
    if (wide::multiplies()) {
        const int output = warp_id() * 16 + lane_id() / 4, pair = lane_id() % 4 * 2;
#pragma unroll
        for (int j = 0; j < wide::part_tiles; ++j) {
            outputs[j * 8 + pair][output] = part[j].x;
            outputs[j * 8 + pair + 1][output] = part[j].y;
            outputs[j * 8 + pair][output + 8] = part[j].z;
            outputs[j * 8 + pair + 1][output + 8] = part[j].w;
        }
    }
    __syncthreads();  // the sums are there before others read them
#pragma unroll 2
    for (int i = int(threadIdx.x); i < wide::part_rows * row_vectors; i += THREADS) {
        const int row = i / row_vectors, column = i % row_vectors * 8, output = first_output + column;
        if (first_row + row >= num_rows || output >= num_outputs) continue;
        bf16* to = residual + size_t(first_row + row) * num_outputs + output;
        float old[8], added[8] = {};
        unpack8(old, load16(to));
        if (bias != nullptr) unpack8(added, load16_constant(bias + output));
#pragma unroll
        for (int k = 0; k < 8; ++k) old[k] += outputs[row][column + k] + added[k];
        store16(to, pack8(old));
    }
}
