// The core for up to BATCH_ROWS (8, 16 or 32) rows of x a block: tensor cores, the weights as the left operand.
//
// A tile is 16 weight rows, 8 low and 8 high. The warps of a block share it by splitting K into groups of 32: warp w
// takes groups w, w + num_warps, ... No weight passes through shared memory: as the order of K inside a sum is free,
// lane (g, t) = (lane / 4, lane % 4) loads 16 bytes, elements 8 t .. 8 t + 7 of a group, of rows g and g + 8, and
// these serve as its k positions 2t, 2t + 1, 2t + 8, 2t + 9 of two mma instructions; x is taken apart the same way.
//
//   one group, row g:  [ t=0: 8 of k | t=1 | t=2 | t=3 ]  ->  mma 0 uses elements 0..3 of each lane, mma 1 uses 4..7
//
// With a norm, x times the norm's weight is kept in shared memory for all tiles of the block, each lane's part where
// only that lane reads it: no barrier. Without, it goes straight to registers: such kernels have one tile a block.
//
// A row's sum is taken in an order that depends on K, THREADS and SPLIT alone, not on BATCH_ROWS nor on its place.
// Defines besides those of projection.cuh: SPLIT (blocks, in gridDim.y, that share K; the last to arrive adds up).
// gridDim.z counts further rows of x, BATCH_ROWS at a time.
#pragma once

namespace projection {

constexpr int num_warps = THREADS / warp_size;
constexpr int tile_rows = 16, tile_pairs = 8;
constexpr int num_batch_tiles = BATCH_ROWS / 8;
constexpr int num_vectors = SIZE_K / 8;
constexpr int num_groups = ceil_div(SIZE_K, 32);
constexpr int split_groups = ceil_div(num_groups, SPLIT);
constexpr int num_steps = ceil_div(split_groups, num_warps);
constexpr int chunk_steps = num_steps < LOADS / 2 ? num_steps : LOADS / 2;
constexpr int num_chunks = ceil_div(num_steps, chunk_steps);
constexpr bool is_whole = num_vectors == SPLIT * num_chunks * chunk_steps * num_warps * 4;
static_assert(num_batch_tiles <= num_warps, "a warp finishes the tile for eight rows of x");
static_assert(!HAS_NORM || SPLIT == 1, "the mean square needs the whole row");

using Chunk = uint4[chunk_steps];

/// Which 16-byte vector of a row lane t of the quad takes in a step, or -1 if there is none left.
TINYVLLM_DEVICE int vector_at(int step) {
    const int in_split = step * num_warps + block_warp();
    const int vector = (int(blockIdx.y) * split_groups + in_split) * 4 + block_lane() % 4;
    return is_whole || (in_split < split_groups && vector < num_vectors) ? vector : -1;
}

/// This lane's part of a step of two weight rows.
TINYVLLM_DEVICE void load_step(uint4& low, uint4& high, const bf16* low_row, const bf16* high_row, int step) {
    const int vector = vector_at(step);
    low = high = make_uint4(0, 0, 0, 0);
    if (vector < 0) return;
    low = load16_once(low_row + vector * 8);
    high = load16_once(high_row + vector * 8);
}

/// Where row g of the low and of the high run of a tile begins.
struct LaneRows {
    const bf16 *low, *high;

    TINYVLLM_DEVICE LaneRows(const bf16* weight, TileRows rows, int num_outputs) {
        int low_row = rows.low + block_lane() / 4, high_row = rows.high + block_lane() / 4;
        if (GUARD_ROWS) {  // rows beyond the last repeat it
            low_row = min(low_row, num_outputs - 1);
            high_row = min(high_row, num_outputs - 1);
        }
        low = weight + size_t(low_row) * SIZE_K;
        high = weight + size_t(high_row) * SIZE_K;
    }
};

/// This lane's part of row `row` of x: a vector of a step, zero for rows that are not there.
TINYVLLM_DEVICE uint4 load_x(const Input& in, int row, int step) {
    const int vector = vector_at(step);
    if (vector < 0 || row >= in.num_rows) return make_uint4(0, 0, 0, 0);
    return load16(in.x + size_t(row) * SIZE_K + vector * 8);
}

/// Shared memory slot of this thread for a step and eight rows of x.
TINYVLLM_DEVICE int slot_of(int step, int batch_tile) {
    return (step * num_batch_tiles + batch_tile) * THREADS + int(threadIdx.x);
}

/// Fetches the norm's weight to the slots of batch tile 0: it need not wait for the predecessor.
TINYVLLM_DEVICE void start_norm(uint4* staged, const bf16* norm) {
#pragma unroll 1
    for (int step = 0; step < num_steps; ++step) {
        const int vector = vector_at(step);
        cp_async16_or_zero(&staged[slot_of(step, 0)], norm + max(vector, 0) * 8, vector >= 0);
    }
    cp_async_commit();
}

/// Turns x into x times the norm's weight in this thread's slots; the sums of squares of its rows of x.
TINYVLLM_DEVICE void stage_x(uint4* staged, float (&squares)[num_batch_tiles], const Input& in, int first_row) {
#pragma unroll
    for (int batch_tile = num_batch_tiles - 1; batch_tile >= 0; --batch_tile) {  // tile 0 last: its slots hold the norm
        const int row = first_row + batch_tile * 8 + block_lane() / 4;
        squares[batch_tile] = 0.0f;
#pragma unroll 1
        for (int chunk = 0; chunk < num_chunks; ++chunk) {
            Chunk vectors;
#pragma unroll
            for (int i = 0; i < chunk_steps; ++i) vectors[i] = load_x(in, row, chunk * chunk_steps + i);
            cp_async_wait<0>();  // the norm, asked for long ago: x is on its way meanwhile
#pragma unroll
            for (int i = 0; i < chunk_steps; ++i) {
                const int step = chunk * chunk_steps + i;
                if (step >= num_steps) break;
                float x[8], scale[8];
                unpack8(x, vectors[i]);
                unpack8(scale, staged[slot_of(step, 0)]);
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    squares[batch_tile] = fmaf(x[j], x[j], squares[batch_tile]);
                    x[j] *= scale[j];
                }
                staged[slot_of(step, batch_tile)] = pack8(x);
            }
        }
        squares[batch_tile] += __shfl_xor_sync(full_warp, squares[batch_tile], 1);  // the quad's lanes hold one row
        squares[batch_tile] += __shfl_xor_sync(full_warp, squares[batch_tile], 2);
    }
}

/// d += 16 weight rows times 8 rows of x, over the 32 of K of one group, in two independent chains.
TINYVLLM_DEVICE void multiply(float (&d)[2][4], const uint4& low, const uint4& high, const uint4& x) {
    const uint32_t first_w[4] = {low.x, high.x, low.y, high.y}, first_x[2] = {x.x, x.y};
    const uint32_t second_w[4] = {low.z, high.z, low.w, high.w}, second_x[2] = {x.z, x.w};
    mma_bf16(d[0], first_w, first_x);
    mma_bf16(d[1], second_w, second_x);
}

TINYVLLM_DEVICE void add4(float4& sum, const float4& x) {
    sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
}

#if SPLIT > 1
/// Adds up the sums of the blocks that share a tile: true in the block that arrived last, which has them all.
/// The order of the additions is that of the splits, whoever is last.
TINYVLLM_DEVICE bool add_splits(const Input& in, int tile, int num_tiles, float4& sum) {
    __shared__ bool is_last;
    const int lane = block_lane(), warp = block_warp(), job = int(blockIdx.z) * num_tiles + tile;
    float4* sums = reinterpret_cast<float4*>(in.workspace) + size_t(job) * SPLIT * num_batch_tiles * warp_size;
    if (warp < num_batch_tiles) sums[(blockIdx.y * num_batch_tiles + warp) * warp_size + lane] = sum;
    __syncthreads();  // the block's sums are written before its thread 0 publishes them
    if (threadIdx.x == 0) is_last = is_last_arrival(&in.counters[job], SPLIT);
    __syncthreads();  // the verdict is there before it is read, and what the other blocks published is seen
    if (!is_last || warp >= num_batch_tiles) return is_last;
    sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int split = 0; split < SPLIT; ++split) add4(sum, sums[(split * num_batch_tiles + warp) * warp_size + lane]);
    return true;
}
#endif

/// All tiles of this block, `rows_of(tile)` giving their rows: blockIdx.x, and those gridDim.x further on. No block is
/// without a tile.
template <class RowsOf, class Epilogue>
TINYVLLM_DEVICE void project(const Input& in, const bf16* weight, int num_outputs, int num_tiles, RowsOf rows_of,
                             Epilogue& epilogue) {
    __shared__ float4 partial[2][num_warps][num_batch_tiles][warp_size];
    __shared__ float partial_squares[num_warps][BATCH_ROWS];
    uint4* staged = dynamic_shared<uint4>();
    const int warp = block_warp(), lane = block_lane(), pair = lane / 4;
    const int first_tile = blockIdx.x, first_row = int(blockIdx.z) * BATCH_ROWS;
    const bool finishes = warp < num_batch_tiles;
    const int row_of_x = first_row + warp * 8 + lane % 4 * 2;  // of this lane's results, and the next one

    Chunk low, high;
    LaneRows lane_rows(weight, rows_of(first_tile), num_outputs);
#pragma unroll
    for (int i = 0; i < chunk_steps; ++i) load_step(low[i], high[i], lane_rows.low, lane_rows.high, i);
    if (HAS_NORM) start_norm(staged, in.norm);
    pdl_launch_dependents();
    pdl_wait();  // x, and what the epilogue reads, are the predecessor's

    typename Epilogue::Token tokens[2] = {};
    bool has_row[2];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        has_row[which] = finishes && row_of_x + which < in.num_rows;
        if (has_row[which]) tokens[which] = epilogue.token(row_of_x + which);
    }
    if (HAS_NORM) {
        float squares[num_batch_tiles];
        stage_x(staged, squares, in, first_row);
#pragma unroll
        for (int i = 0; i < num_batch_tiles; ++i)
            if (lane % 4 == 0) partial_squares[warp][i * 8 + lane / 4] = squares[i];
    }
    float rstd[2] = {1.0f, 1.0f};
    int buffer = 0;
    for (int tile = first_tile; tile < num_tiles; tile += gridDim.x) {
        const TileRows rows = rows_of(tile);
        float d[num_batch_tiles][2][4] = {};
        typename Epilogue::Early early[2] = {};
#pragma unroll
        for (int which = 0; which < 2; ++which)
            if (has_row[which])
                early[which] = epilogue.early(tokens[which],
                                              Place{rows.low + pair, rows.high + pair, row_of_x + which, which});
#pragma unroll 1
        for (int chunk = 0; chunk < num_chunks; ++chunk) {
            uint4 x[chunk_steps][num_batch_tiles];
            if (!HAS_NORM) {
#pragma unroll
                for (int i = 0; i < chunk_steps; ++i)
#pragma unroll
                    for (int j = 0; j < num_batch_tiles; ++j)
                        x[i][j] = load_x(in, first_row + j * 8 + lane / 4, chunk * chunk_steps + i);
            }
            const bool ends_tile = chunk + 1 == num_chunks;
            const int next_tile = ends_tile ? tile + int(gridDim.x) : tile, next_chunk = ends_tile ? 0 : chunk + 1;
            if (ends_tile) lane_rows = LaneRows(weight, rows_of(next_tile), num_outputs);
#pragma unroll
            for (int i = 0; i < chunk_steps; ++i) {
                const int step = chunk * chunk_steps + i;
#pragma unroll
                for (int j = 0; j < num_batch_tiles; ++j) {
                    if (HAS_NORM) x[i][j] = staged[slot_of(min(step, num_steps - 1), j)];
                    multiply(d[j], low[i], high[i], x[i][j]);
                }
                // Used up: the next weights are on their way while the other steps are multiplied.
                if (next_tile < num_tiles)
                    load_step(low[i], high[i], lane_rows.low, lane_rows.high, next_chunk * chunk_steps + i);
            }
        }
#pragma unroll
        for (int j = 0; j < num_batch_tiles; ++j)
            partial[buffer][warp][j][lane] = make_float4(d[j][0][0] + d[j][1][0], d[j][0][1] + d[j][1][1],
                                                         d[j][0][2] + d[j][1][2], d[j][0][3] + d[j][1][3]);
        // This tile's sums (and the squares) are there before they are added up, and those of the last tile but one,
        // in the same buffer, had been read before the barrier of the last tile.
        __syncthreads();
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (finishes) {
#pragma unroll
            for (int i = 0; i < num_warps; ++i) add4(sum, partial[buffer][i][warp][lane]);
        }
        buffer ^= 1;
#if SPLIT > 1
        if (!add_splits(in, tile, num_tiles, sum)) continue;
#endif
        const float low_sums[2] = {sum.x, sum.y}, high_sums[2] = {sum.z, sum.w};
#pragma unroll
        for (int which = 0; which < 2; ++which) {
            if (!has_row[which]) continue;
            if (HAS_NORM && tile == first_tile) {
                float squares = 0.0f;
                for (int i = 0; i < num_warps; ++i) squares += partial_squares[i][warp * 8 + lane % 4 * 2 + which];
                rstd[which] = 1.0f / sqrtf(squares * (1.0f / SIZE_K) + in.eps);
            }
            epilogue.store(tokens[which], early[which],
                           Place{rows.low + pair, rows.high + pair, row_of_x + which, which},
                           low_sums[which] * rstd[which], high_sums[which] * rstd[which]);
        }
    }
}

}  // namespace projection
