// Gate and up projections and the activation in one, from 17 rows on, for Hopper; the rows of x come normalised.
//   Formula    out[t][f] = silu(x[t] . weight[f]) * (x[t] . weight[F + f])
//   Reference  compose of rms_norm_gate_up_silu in tinyvllm/ops/catalogue.py, but for the norm
//   Shapes     out [T, F], x [T, E], weight [2F, E] bfloat16, gates first; E % 8 == 0 (SIZE_K), F % 8 == 0
//   Mapping    a tile pairs weight rows f and F + f in runs of eight, so that a lane has both sums; see
//              gemm_wide_core.cuh. Outputs go through shared memory, to be stored 16 bytes at a time
//   Numerics   float32 sums; rounds once at the end
//   Traffic    4 F E bytes of weights, and from L2 2 BATCH_ROWS E bytes of x for each TILE_ROWS of them; bandwidth, from
//              200 rows on the tensor cores
#include "tinyvllm/prelude.cuh"
#include "../activation.cuh"
#define SPLIT 1
#include "gemm_wide_core.cuh"

constexpr int tile_columns = TILE_ROWS / 2;  // outputs of a row of x
constexpr int row_vectors = tile_columns / 8;

/// Rows that are not a multiple of 128 bytes apart: eight lanes that write one column find eight banks.
using Outputs = bf16[BATCH_ROWS][tile_columns + 8];
static_assert(sizeof(Outputs) <= sizeof(wide::Stage) * NUM_STAGES, "they take the ring's place");

extern "C" __global__ void __launch_bounds__(THREADS)
    gate_up_silu_wide(bf16* out, const __grid_constant__ TensorMap weight_map, const __grid_constant__ TensorMap x_map,
                      int num_rows, int num_columns) {
    wide::Shared& shared = *dynamic_shared<wide::Shared>();
    const int first_column = int(blockIdx.z) * tile_columns, first_row = int(blockIdx.x) * BATCH_ROWS;
    const auto start_weights = [&](void* to, uint64_t* barrier, int k) {
        tensor_copy_pairs(to, weight_map, barrier, first_column / 8, k);
    };
    wide::Sums sums;
    wide::project(sums, shared, x_map, start_weights);
    Outputs& outputs = *reinterpret_cast<Outputs*>(&shared);
    if (wide::multiplies()) {
        const int column = warp_id() * 8 + lane_id() / 4, pair = lane_id() % 4 * 2;
#pragma unroll
        for (int j = 0; j < wide::num_batch_tiles; ++j)
#pragma unroll
            for (int which = 0; which < 2; ++which)
                outputs[j * 8 + pair + which][column] =
                    from_float<bf16>(silu(sums[j][which]) * sums[j][2 + which]);
    }
    __syncthreads();  // the outputs are there before they are copied out
#pragma unroll 4
    for (int i = int(threadIdx.x); i < BATCH_ROWS * row_vectors; i += THREADS) {
        const int row = i / row_vectors, column = i % row_vectors * 8;
        if (first_row + row < num_rows && first_column + column < num_columns)
            store16(out + size_t(first_row + row) * num_columns + first_column + column, load16(&outputs[row][column]));
    }
}
