// The core from 17 rows of x on, for Hopper: y = x W^T, the weights as the left operand of a warpgroup's products.
//
// A block has TILE_ROWS weight rows, 64 a warpgroup, and up to BATCH_ROWS rows of x, over K or, with SPLIT > 1, over a
// part of it. More rows of x are more blocks (gridDim.x), next to each other, so that memory is asked for weights once.
// Both come through a ring of NUM_STAGES stages of shared memory, 64 of K each, that the copy engine fills: one thread of
// the last warp asks for the boxes, the others multiply. The weights of the first stages are asked for before the wait
// on the predecessor.
//
//   full[s], empty[s]   barriers of a stage: its boxes are there; all warps' products with it are done
//   sums                a warp has 16 weight rows of its warpgroup's 64, a lane rows g and g + 8 of them (mma.cuh)
//
// With SPLIT > 1 the blocks of a tile (gridDim.y) exchange sums through `workspace`, each adding up those of a part of
// the rows of x, in the order of the splits. They wait for each other: a cooperative launch.
// Defines: SIZE_K, BATCH_ROWS (64, 128 or 256), TILE_ROWS, THREADS, NUM_STAGES, SPLIT, SHARED_BYTES.
#pragma once
#include "tinyvllm/tensor_copy.cuh"
#include "tinyvllm/shared/vectors.cuh"

namespace wide {

constexpr int stage_k = 64, group_rows = 64, group_warps = 4;
constexpr int num_consumers = TILE_ROWS / group_rows * group_warps;  // warps that multiply
constexpr int num_stages = ceil_div(ceil_div(SIZE_K, stage_k), SPLIT);
constexpr int num_batch_tiles = BATCH_ROWS / 8, part_tiles = num_batch_tiles / SPLIT;
constexpr int part_rows = BATCH_ROWS / SPLIT;  // rows of x that a block finishes
constexpr int num_threads_multiplying = num_consumers * warp_size;
static_assert(THREADS == num_threads_multiplying + warp_size, "and a warp that asks for copies");
static_assert(part_tiles * SPLIT == num_batch_tiles, "blocks share the rows of x evenly");

struct Stage {
    uint4 weight[TILE_ROWS][8];
    uint4 x[BATCH_ROWS][8];
};

struct alignas(1024) Shared {  // as the operands of a product are
    Stage stages[NUM_STAGES];
    uint64_t full[NUM_STAGES], empty[NUM_STAGES];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same size");

using Sums = float[num_batch_tiles][4];

/// Walks round the ring: the slot, and the parity of the phase that its barriers are in.
struct Turn {
    int slot = 0;
    uint32_t parity = 0;

    TINYVLLM_DEVICE void advance() {
        if (++slot < NUM_STAGES) return;
        slot = 0;
        parity ^= 1;
    }
};

TINYVLLM_DEVICE bool multiplies() { return int(threadIdx.x) < num_threads_multiplying; }

/// One thread's work: asks for all boxes of this block. `start_weights(to, barrier, k)` asks for the weights'.
template <class StartWeights>
TINYVLLM_DEVICE void fetch(Shared& shared, const TensorMap& x_map, StartWeights start_weights) {
    const int first_k = int(blockIdx.y) * num_stages * stage_k, first_row = int(blockIdx.x) * BATCH_ROWS;
    constexpr int num_early = NUM_STAGES < num_stages ? NUM_STAGES : num_stages;
    const auto start_stage = [&](int slot, int stage) {
        mbarrier_expect(&shared.full[slot], sizeof(Stage));
        start_weights(shared.stages[slot].weight, &shared.full[slot], first_k + stage * stage_k);
    };
    const auto start_x = [&](int slot, int stage) {
        tensor_copy(shared.stages[slot].x, x_map, &shared.full[slot], first_row, first_k + stage * stage_k);
    };
    prefetch_tensor_map(x_map);
#pragma unroll 1
    for (int stage = 0; stage < num_early; ++stage) start_stage(stage, stage);
    pdl_wait();  // x is the predecessor's
#pragma unroll 1
    for (int stage = 0; stage < num_early; ++stage) start_x(stage, stage);
    Turn turn;
#pragma unroll 1
    for (int stage = num_early; stage < num_stages; ++stage, turn.advance()) {
        mbarrier_wait(&shared.empty[turn.slot], turn.parity);  // all warps are done with what is overwritten
        start_stage(turn.slot, stage);
        start_x(turn.slot, stage);
    }
}

/// A warpgroup's part of the product.
TINYVLLM_DEVICE void multiply(Sums& sums, Shared& shared) {
    const int first_row = int(threadIdx.x) / (group_warps * warp_size) * group_rows;
    Turn turn;
    int last = 0;
#pragma unroll 1
    for (int stage = 0; stage < num_stages; ++stage, turn.advance()) {
        mbarrier_wait(&shared.full[turn.slot], turn.parity);  // the stage's boxes have landed
        const uint64_t weight = wgmma_rows(shared.stages[turn.slot].weight[first_row]);
        const uint64_t x = wgmma_rows(shared.stages[turn.slot].x);
        wgmma_hold(sums);
        wgmma_begin();
#pragma unroll
        for (int step = 0; step < stage_k / 16; ++step) wgmma_bf16(sums, weight + step * 2, x + step * 2);
        wgmma_commit();
        wgmma_wait<1>();  // the product with the stage before is done with its slot
        if (stage > 0 && stage - 1 + NUM_STAGES < num_stages && lane_id() == 0) mbarrier_arrive(&shared.empty[last]);
        last = turn.slot;
    }
    wgmma_wait<0>();  // the sums are complete
    wgmma_hold(sums);
}

/// The product of this block's rows. `start_weights` as for `fetch`. All threads call it, and on return the ring is free.
template <class StartWeights>
TINYVLLM_DEVICE void project(Sums& sums, Shared& shared, const TensorMap& x_map, StartWeights start_weights) {
    if (threadIdx.x == 0)
        for (int i = 0; i < NUM_STAGES; ++i) {
            mbarrier_init(&shared.full[i], 1);
            mbarrier_init(&shared.empty[i], num_consumers);
        }
    __syncthreads();  // the barriers are set up before anyone uses them
    pdl_launch_dependents();
#pragma unroll
    for (int j = 0; j < num_batch_tiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[j][i] = 0.0f;
    if (multiplies()) multiply(sums, shared);
    else if (threadIdx.x == num_threads_multiplying) fetch(shared, x_map, start_weights);
    __syncthreads();  // all warps are done with the ring, which is used for other things next
}

/// What a lane finishes of a tile: of `part_tiles` times eight rows of x, its sums as in `mma.cuh`.
using Part = float4[part_tiles];

TINYVLLM_DEVICE float4 four_of(const Sums& sums, int tile) {
    return make_float4(sums[tile][0], sums[tile][1], sums[tile][2], sums[tile][3]);
}

/// Adds up what the blocks of a tile have, for those rows of x that this block finishes. All threads call it; the
/// counter, zero before the first launch, goes up by SPLIT in each.
TINYVLLM_DEVICE void exchange(Part& part, const Sums& sums, float* workspace, uint32_t* counters) {
    const int mine = int(blockIdx.y);
#if SPLIT > 1
    const int tile = int(blockIdx.x) * int(gridDim.z) + int(blockIdx.z);
    using Slice = float4[part_tiles][num_threads_multiplying];
    Slice(*const slices)[SPLIT] = reinterpret_cast<Slice(*)[SPLIT]>(workspace) + size_t(tile) * SPLIT;  // [for][by]
    if (multiplies())
#pragma unroll
        for (int j = 0; j < num_batch_tiles; ++j)
            if (j / part_tiles != mine) slices[j / part_tiles][mine][j % part_tiles][threadIdx.x] = four_of(sums, j);
    __syncthreads();  // the block's sums are written before its thread 0 publishes them
    if (threadIdx.x == 0) {
        const uint32_t before = add_acq_rel(&counters[tile], 1);
        counter_wait(&counters[tile], before - before % SPLIT + SPLIT);  // all blocks of the tile have published theirs
    }
    __syncthreads();  // nobody reads the others' before thread 0 has seen them all arrive
    if (!multiplies()) return;
#endif
#pragma unroll
    for (int j = 0; j < part_tiles; ++j) {
        part[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int by = 0; by < SPLIT; ++by)
            if (by == mine) add4(part[j], four_of(sums, by * part_tiles + j));
#if SPLIT > 1
            else add4(part[j], slices[mine][by][j][threadIdx.x]);
#endif
    }
}

}  // namespace wide
