// The core for many rows of x, BATCH_ROWS (64 or 128) a block: tensor cores, the weights as the left operand.
//
// It takes the sums of gemm_small_core.cuh in the same order, and so gives the same bits: K is cut in SPLIT spans, a span
// in chunks of 64, which WARPS_PER_ROW chains take in turn. There the chains are warps and the spans blocks; here a warp
// computes a chain after the other, and a block one span or all.
//
// An item is a tile of 16 weight rows for each warp, and BATCH_ROWS rows of x. A block takes every so many-th, with the rows of x
// changing fastest, so that weights are read from memory once for 16 items. Chunks of weights and x come through a ring
// of NUM_STAGES stages of shared memory, which never runs dry: the next item's are on their way while one is finished.
//
//   warps    4 or 8, of 16 weight rows and all rows of x each: the fragments of four are those of a Hopper instruction
//   stage    weight [block_rows][64], x [BATCH_ROWS][64]; vector v of row r lies at v ^ r % 8, so that the eight rows of an
//            ldmatrix are in eight groups of banks, and as that instruction expects it
//
// Defines besides those of projection.cuh: WARPS_PER_ROW, SPLIT, STAGE_K (of gemm_small_core.cuh: spans are whole stages
// long), SPANS_PER_BLOCK (SPLIT, or 1: blocks share items then, in gridDim.y, and the last to arrive adds up),
// NUM_STAGES, SHARED_BYTES.
#pragma once

namespace projection {

constexpr int num_warps = THREADS / warp_size;
constexpr int tile_rows = 16, tile_pairs = 8;
constexpr int block_tiles = num_warps, block_rows = block_tiles * tile_rows;
constexpr int num_batch_tiles = BATCH_ROWS / 8;
constexpr int num_vectors = SIZE_K / 8;
constexpr int chunk_k = 64, chunk_vectors = chunk_k / 8;
constexpr int span_chunks = ceil_div(ceil_div(SIZE_K, STAGE_K), SPLIT) * (STAGE_K / chunk_k);
constexpr int chain_chunks = span_chunks / WARPS_PER_ROW;
constexpr bool is_whole = SIZE_K == SPLIT * span_chunks * chunk_k;
constexpr int num_steps = SPANS_PER_BLOCK * span_chunks;  // of an item: a chunk each
constexpr int num_ahead = NUM_STAGES - 2;
constexpr int rows_at_once = THREADS / chunk_vectors;  // that the block's threads copy a vector each of
constexpr int group_row_tiles = 16;
constexpr int tiles_at_once = 4;  // of eight rows of x, that are finished
static_assert(STAGE_K % (WARPS_PER_ROW * chunk_k) == 0, "chains take whole chunks");
static_assert(block_rows % rows_at_once == 0 && BATCH_ROWS % rows_at_once == 0, "threads copy whole rows");
static_assert(SPANS_PER_BLOCK == 1 || SPANS_PER_BLOCK == SPLIT, "a block takes one span or all");

struct Stage {
    uint4 weight[block_rows][chunk_vectors];
    uint4 x[BATCH_ROWS][chunk_vectors];
};

struct Shared {
    Stage stages[NUM_STAGES];
    uint32_t is_last[4];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same size");

/// All items, and which is which.
struct Items {
    int num_jobs, num_row_tiles;

    TINYVLLM_DEVICE int count() const { return num_jobs * num_row_tiles; }

    /// The first tile of weight rows and the first row of x of an item.
    TINYVLLM_DEVICE void find(int item, int& first_tile, int& first_row) const {
        const int first = item / (num_jobs * group_row_tiles) * group_row_tiles, within = item - first * num_jobs;
        const int in_group = min(group_row_tiles, num_row_tiles - first);
        first_tile = within / in_group * block_tiles;
        first_row = (first + within % in_group) * BATCH_ROWS;
    }
};

/// Walks over the chunks of all the block's items, ahead of the computation.
template <class RowsOf>
struct Fetcher {
    static constexpr int weight_passes = block_rows / rows_at_once, x_passes = BATCH_ROWS / rows_at_once;

    const Input& in;
    const bf16* weight;
    int num_outputs, num_tiles;
    RowsOf rows_of;
    Items items;
    int item, step;  // of the next fetch
    uint32_t rows[weight_passes];  // where this thread's weight rows begin
    int first_row;  // this thread's, of x

    TINYVLLM_DEVICE bool has_next() const { return item < items.count(); }

    TINYVLLM_DEVICE void find_rows() {
        int first_tile;
        items.find(item, first_tile, first_row);
        first_row += int(threadIdx.x) / chunk_vectors;
#pragma unroll
        for (int i = 0; i < weight_passes; ++i) {
            const int local = int(threadIdx.x) / chunk_vectors + i * rows_at_once;
            const TileRows runs = rows_of(min(first_tile + local / tile_rows, num_tiles - 1));
            int row = (local % tile_rows < tile_pairs ? runs.low : runs.high) + local % tile_pairs;
            if (GUARD_ROWS) row = min(row, num_outputs - 1);  // rows beyond the last repeat it
            rows[i] = uint32_t(row) * SIZE_K;
        }
    }

    /// This thread's vector of a row at this step, or -1 if the row ends before.
    TINYVLLM_DEVICE int vector() const {
        const int span = int(blockIdx.y) + step / span_chunks, within = step % span_chunks;
        const int chunk = span * span_chunks + within % chain_chunks * WARPS_PER_ROW + within / chain_chunks;
        const int vector = chunk * chunk_vectors + int(threadIdx.x) % chunk_vectors;
        return is_whole || vector < num_vectors ? vector : -1;
    }

    TINYVLLM_DEVICE void start_weights(Stage& to) const {
        const int row = int(threadIdx.x) / chunk_vectors, column = int(threadIdx.x) % chunk_vectors ^ row % 8;
        const int from = vector();
        const bool valid = from >= 0;
#pragma unroll
        for (int i = 0; i < weight_passes; ++i)
            cp_async16_or_zero(&to.weight[row + i * rows_at_once][column],
                               weight + (valid ? rows[i] + uint32_t(from) * 8 : 0), valid);
    }

    TINYVLLM_DEVICE void start_x(Stage& to) const {
        const int row = int(threadIdx.x) / chunk_vectors, column = int(threadIdx.x) % chunk_vectors ^ row % 8;
        const int from = vector();
        const bf16* const begin = in.x + (from >= 0 ? size_t(first_row) * SIZE_K + from * 8 : 0);
#pragma unroll
        for (int i = 0; i < x_passes; ++i) {
            const bool valid = from >= 0 && first_row + i * rows_at_once < in.num_rows;
            cp_async16_or_zero(&to.x[row + i * rows_at_once][column],
                               valid ? begin + i * rows_at_once * SIZE_K : in.x, valid);
        }
    }

    TINYVLLM_DEVICE void advance() {
        if (++step < num_steps) return;
        step = 0;
        item += int(gridDim.x);
        if (has_next()) find_rows();
    }

    /// Starts the copy of the next chunk, if there is one; a group of its own in any case.
    TINYVLLM_DEVICE void fetch(Stage& to) {
        if (has_next()) {
            start_weights(to);
            start_x(to);
            advance();
        }
        cp_async_commit();
    }
};

using Sums = float[num_batch_tiles][4];

TINYVLLM_DEVICE void add_sums(Sums& sums, const Sums& more) {
#pragma unroll
    for (int j = 0; j < num_batch_tiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[j][i] += more[j][i];
}

#if TINYVLLM_HAS_WGMMA
/// Copies that this thread has waited for are seen; its products but the last chunk's are done.
TINYVLLM_DEVICE void settle() {
    wgmma_see_shared();
    wgmma_wait<1>();  // with wgmma: the slot that is overwritten next is read no more
}

/// Starts a chunk's products.
TINYVLLM_DEVICE void multiply(Sums& d, const Stage& stage) {
    const uint64_t a = wgmma_rows(stage.weight[block_warp() / 4 * 64]), b = wgmma_rows(stage.x);
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < chunk_k / 16; ++step) wgmma_bf16(d, a + step * 2, b + step * 2);
    wgmma_commit();
}

TINYVLLM_DEVICE void finish(Sums& d) {
    wgmma_wait<0>();  // with wgmma: the sums are complete
    wgmma_hold(d);
}
#else
TINYVLLM_DEVICE void settle() {}

TINYVLLM_DEVICE void multiply(Sums& d, const Stage& stage) {
    const int lane = block_lane(), row_swizzle = lane % 8;
#pragma unroll
    for (int step = 0; step < chunk_k / 16; ++step) {
        uint32_t weight[4];
        ldmatrix_x4(weight, &stage.weight[block_warp() * tile_rows + lane % 16][(step * 2 + lane / 16) ^ row_swizzle]);
#pragma unroll
        for (int j = 0; j < num_batch_tiles; j += 2) {
            uint32_t r[4];  // two registers for each of two tiles
            ldmatrix_x4(r, &stage.x[j * 8 + lane % 8 + lane / 16 * 8][(step * 2 + lane / 8 % 2) ^ row_swizzle]);
            mma_bf16(d[j], weight, {r[0], r[1]});
            mma_bf16(d[j + 1], weight, {r[2], r[3]});
        }
    }
}

TINYVLLM_DEVICE void finish(Sums&) {}
#endif

#if SPLIT > SPANS_PER_BLOCK
/// Adds up what the blocks that share an item have, in the order of the spans: true in the block that arrived last, which
/// has it all.
TINYVLLM_DEVICE bool add_spans(Shared& shared, const Input& in, int item, Sums& sums) {
    constexpr int part_vectors = block_tiles * num_batch_tiles * warp_size;
    float4* parts = reinterpret_cast<float4*>(in.workspace) + size_t(item) * SPLIT * part_vectors;
    parts += block_warp() * num_batch_tiles * warp_size + block_lane();
#pragma unroll
    for (int j = 0; j < num_batch_tiles; ++j)
        parts[blockIdx.y * part_vectors + j * warp_size] = make_float4(sums[j][0], sums[j][1], sums[j][2], sums[j][3]);
    __syncthreads();  // the block's sums are written before its thread 0 publishes them
    if (threadIdx.x == 0) shared.is_last[0] = is_last_arrival(&in.counters[item], SPLIT);
    __syncthreads();  // the verdict is there before it is read, and what the other blocks published is seen
    if (!shared.is_last[0]) return false;
#pragma unroll
    for (int j = 0; j < num_batch_tiles; ++j) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
#pragma unroll 1
    for (int span = 0; span < SPLIT; ++span) {
#pragma unroll
        for (int j = 0; j < num_batch_tiles; ++j) {
            const float4 part = parts[span * part_vectors + j * warp_size];
            sums[j][0] += part.x, sums[j][1] += part.y, sums[j][2] += part.z, sums[j][3] += part.w;
        }
    }
    return true;
}
#endif

/// Hands a warp's sums to the epilogue, some rows of x at a time: what it reads for one would else wait for the last's
/// results to be stored.
template <class Epilogue>
TINYVLLM_DEVICE void store_sums(const Sums& sums, TileRows rows, int first_row, int num_rows, Epilogue& epilogue) {
    const int lane = block_lane(), pair = lane / 4;
#pragma unroll
    for (int first = 0; first < num_batch_tiles; first += tiles_at_once) {
        typename Epilogue::Token tokens[tiles_at_once][2] = {};
        typename Epilogue::Early early[tiles_at_once][2] = {};
        const auto place = [&](int j, int which) {
            const int row = first_row + (first + j) * 8 + lane % 4 * 2 + which;
            return Place{rows.low + pair, rows.high + pair, row, which};
        };
#pragma unroll
        for (int j = 0; j < tiles_at_once; ++j)
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                const Place at = place(j, which);
                if (at.row_of_x < num_rows) tokens[j][which] = epilogue.token(at.row_of_x);
            }
#pragma unroll
        for (int j = 0; j < tiles_at_once; ++j)
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                const Place at = place(j, which);
                if (at.row_of_x < num_rows) early[j][which] = epilogue.early(tokens[j][which], at);
            }
#pragma unroll
        for (int j = 0; j < tiles_at_once; ++j)
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                const Place at = place(j, which);
                if (at.row_of_x < num_rows)
                    epilogue.store(tokens[j][which], early[j][which], at, sums[first + j][which],
                                   sums[first + j][which + 2]);
            }
    }
}

/// All items of this block, blockIdx.x and those gridDim.x further on; `rows_of(tile)` gives the weight rows of a tile. No
/// block is without an item.
template <class RowsOf, class Epilogue>
TINYVLLM_DEVICE void project(const Input& in, const bf16* weight, int num_outputs, int num_tiles, RowsOf rows_of,
                             Epilogue& epilogue) {
    Shared& shared = *dynamic_shared<Shared>();
    const Items items{ceil_div(num_tiles, block_tiles), ceil_div(in.num_rows, BATCH_ROWS)};
    Fetcher<RowsOf> fetcher{in, weight, num_outputs, num_tiles, rows_of, items, int(blockIdx.x), 0, {}, 0};
    fetcher.find_rows();
    Fetcher<RowsOf> weights_ahead = fetcher;
#pragma unroll 1
    for (int slot = 0; slot < num_ahead && weights_ahead.has_next(); ++slot) {
        weights_ahead.start_weights(shared.stages[slot]);
        weights_ahead.advance();
    }
    pdl_launch_dependents();
    pdl_wait();  // x, and what the epilogue reads, are the predecessor's
#pragma unroll 1
    for (int slot = 0; slot < num_ahead; ++slot) {
        if (fetcher.has_next()) {
            fetcher.start_x(shared.stages[slot]);
            fetcher.advance();
        }
        cp_async_commit();  // the first of these groups has all the weights
    }
    int slot = 0;
    for (int item = int(blockIdx.x); item < items.count(); item += int(gridDim.x)) {
        Sums sums = {};
#pragma unroll 1
        for (int span = 0; span < SPANS_PER_BLOCK; ++span) {
            Sums span_sums = {};
#pragma unroll 1
            for (int chain = 0; chain < WARPS_PER_ROW; ++chain) {
                Sums d = {};
#pragma unroll 1
                for (int i = 0; i < chain_chunks; ++i) {
                    cp_async_wait<num_ahead - 1>();  // this thread's copies of the chunk have landed
                    settle();
                    // The copies by all threads are seen, and all warps are done with the last chunk but one, which is
                    // overwritten next.
                    __syncthreads();
                    multiply(d, shared.stages[slot]);
                    fetcher.fetch(shared.stages[slot < 2 ? slot + num_ahead : slot - 2]);
                    slot = slot == NUM_STAGES - 1 ? 0 : slot + 1;
                }
                finish(d);
                add_sums(span_sums, d);
            }
            add_sums(sums, span_sums);
        }
#if SPLIT > SPANS_PER_BLOCK
        if (!add_spans(shared, in, item, sums)) continue;
#endif
        int first_tile, first_row;
        items.find(item, first_tile, first_row);
        const int tile = first_tile + block_warp();
        if (tile < num_tiles) store_sums(sums, rows_of(tile), first_row, in.num_rows, epilogue);
    }
}

}  // namespace projection
