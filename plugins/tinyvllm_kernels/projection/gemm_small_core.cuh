// The core for up to BATCH_ROWS (8, 16 or 32) rows of x a block: tensor cores, the weights as the left operand.
//
// A job is `block_tiles` tiles of 16 weight rows, 8 low and 8 high, over K or, with SPLIT > 1, over a part of it. Weights
// and x come through a ring of NUM_STAGES stages of shared memory, STAGE_K of K each, which never runs dry: while one is
// multiplied the others are on their way, the next job's first among them. The weights of the first stages are asked
// for before the wait on the predecessor.
//
//   warps    WARPS_PER_ROW share a row, each taking every so many-th chunk of K; each works on ROWS_PER_WARP weight rows
//   stage    weight [block_rows][STAGE_K], x [BATCH_ROWS][STAGE_K]; vector v of row r lies at v ^ r % 8, so that the
//            eight rows of an ldmatrix are in eight groups of banks
//
// x comes normalised, where there is a norm: multiplied by the norm's weight on its way to the tensor core, by every
// warp anew, 32 rows of it took as long as the weights.
//
// A row's sum is taken in an order that depends on K, WARPS_PER_ROW, STAGE_K and SPLIT alone, not on BATCH_ROWS nor on its
// place: K is cut in SPLIT spans of whole stages, a span in chunks of 64 (less where a stage has less for each warp). A
// warp adds up every so many-th chunk; then the warps' sums are added, then the spans', in order.
// Defines besides those of projection.cuh: WARPS_PER_ROW (a power of two), ROWS_PER_WARP, STAGE_K (a multiple of 64),
// NUM_STAGES, SHARED_BYTES, ONE_JOB (1 if no block has a second job), SPLIT (blocks, in gridDim.y, that share K; the
// last to arrive adds up). gridDim.z counts further rows of x, BATCH_ROWS at a time.
#pragma once

namespace projection {

constexpr int num_warps = THREADS / warp_size;
constexpr int warps_across = num_warps / WARPS_PER_ROW;  // that work on different weight rows
constexpr int tile_rows = 16, tile_pairs = 8;
constexpr int warp_tiles = ROWS_PER_WARP / tile_rows;
constexpr int block_tiles = warps_across * warp_tiles, block_rows = block_tiles * tile_rows;
constexpr int num_batch_tiles = BATCH_ROWS / 8;
constexpr int num_vectors = SIZE_K / 8;
constexpr int stage_vectors = STAGE_K / 8;
constexpr int stage_steps = STAGE_K / 16 / WARPS_PER_ROW;  // of a warp: 16 of K each
constexpr int chunk_steps = stage_steps % 4 == 0 ? 4 : stage_steps % 2 == 0 ? 2 : 1;
constexpr int split_stages = ceil_div(ceil_div(SIZE_K, STAGE_K), SPLIT);
constexpr bool is_whole = SIZE_K == SPLIT * split_stages * STAGE_K;
constexpr int num_ahead = NUM_STAGES - 1;
constexpr int tiles_at_once = num_warps / num_batch_tiles;  // that are finished, by a warp for eight rows of x each
constexpr int units_per_warp = ceil_div(block_tiles, tiles_at_once > 0 ? tiles_at_once : 1);
static_assert(STAGE_K % 64 == 0 && stage_steps * WARPS_PER_ROW * 16 == STAGE_K, "warps share a stage evenly");
static_assert(tiles_at_once > 0, "there is a warp for each eight rows of x");

struct Stage {
    uint4 weight[block_rows][stage_vectors];
    uint4 x[BATCH_ROWS][stage_vectors];
};

using Sums = float4[WARPS_PER_ROW][block_tiles][num_batch_tiles][warp_size];

/// The ring, and the sums that warps leave for those that finish: with one job, where the ring was.
struct Shared {
    static constexpr int ring_bytes = NUM_STAGES * int(sizeof(Stage));
    static constexpr int sums_begin = ONE_JOB ? 0 : ring_bytes, sums_end = sums_begin + int(sizeof(Sums));

    alignas(16) unsigned char bytes[ring_bytes > sums_end ? ring_bytes : sums_end];
    uint32_t is_last[4];

    TINYVLLM_DEVICE Stage& stage(int slot) { return reinterpret_cast<Stage*>(bytes)[slot]; }
    TINYVLLM_DEVICE Sums& sums() { return *reinterpret_cast<Sums*>(bytes + sums_begin); }
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same size");

/// What a block has of a job when it shares K.
using Part = float4[block_tiles][num_batch_tiles][warp_size];

/// Walks over the stages of all the block's jobs, ahead of the computation.
template <class RowsOf>
struct Fetcher {
    static constexpr int num_weights = block_rows * stage_vectors, num_xs = BATCH_ROWS * stage_vectors;
    static constexpr int weights_per_thread = ceil_div(num_weights, THREADS);

    const Input& in;
    const bf16* weight;
    int num_outputs, num_tiles, first_row;
    RowsOf rows_of;
    int first_tile, stage;  // of the next fetch
    uint32_t rows[weights_per_thread];  // where this thread's weight rows begin

    TINYVLLM_DEVICE bool has_next() const { return first_tile < num_tiles; }

    TINYVLLM_DEVICE void find_rows() {
#pragma unroll
        for (int i = 0; i < weights_per_thread; ++i) {
            const int local = min(int(threadIdx.x) + i * THREADS, num_weights - 1) / stage_vectors;
            const TileRows runs = rows_of(min(first_tile + local / tile_rows, num_tiles - 1));
            int row = (local % tile_rows < tile_pairs ? runs.low : runs.high) + local % tile_pairs;
            if (GUARD_ROWS) row = min(row, num_outputs - 1);  // rows beyond the last repeat it
            rows[i] = uint32_t(row) * SIZE_K;
        }
    }

    /// The vector of a row that lies at `column` of a job's `of`-th stage, or -1 if the row ends before.
    TINYVLLM_DEVICE static int vector_of(int of, int column) {
        const int vector = (int(blockIdx.y) * split_stages + of) * stage_vectors + column;
        return is_whole || vector < num_vectors ? vector : -1;
    }

    TINYVLLM_DEVICE void start_weights(Stage& to) const {
#pragma unroll
        for (int i = 0; i < weights_per_thread; ++i) {
            const int at = int(threadIdx.x) + i * THREADS, row = at / stage_vectors, column = at % stage_vectors;
            if (num_weights % THREADS != 0 && at >= num_weights) break;
            const int vector = vector_of(stage, column);
            cp_async16_once_or_zero(&to.weight[row][column ^ row % 8],
                                    weight + (rows[i] + uint32_t(max(vector, 0)) * 8), vector >= 0);
        }
    }

    TINYVLLM_DEVICE void start_x(Stage& to) const {
#pragma unroll
        for (int i = 0; i < ceil_div(num_xs, THREADS); ++i) {
            const int at = int(threadIdx.x) + i * THREADS, row = at / stage_vectors, column = at % stage_vectors;
            if (num_xs % THREADS != 0 && at >= num_xs) break;
            const int vector = vector_of(stage, column);
            const bool valid = vector >= 0 && first_row + row < in.num_rows;
            cp_async16_or_zero(&to.x[row][column ^ row % 8],
                               in.x + (valid ? size_t(first_row + row) * SIZE_K + vector * 8 : 0), valid);
        }
    }

    TINYVLLM_DEVICE void advance() {
        if (++stage < split_stages) return;
        stage = 0;
        first_tile = ONE_JOB ? num_tiles : first_tile + int(gridDim.x) * block_tiles;
        if (has_next()) find_rows();
    }

    /// Starts the copy of the next stage, if there is one; a group of its own in any case.
    TINYVLLM_DEVICE void fetch(Stage& to) {
        if (has_next()) {
            start_weights(to);
            start_x(to);
            advance();
        }
        cp_async_commit();
    }
};

/// Puts x into the first stages: not by cp.async, whose groups would land after all the weights'.
template <class RowsOf>
TINYVLLM_DEVICE void fill_first_x(Shared& shared, const Input& in, int first_row, int num_filled) {
    constexpr int row_vectors = num_ahead * stage_vectors, count = BATCH_ROWS * row_vectors;
    constexpr int per_thread = ceil_div(count, THREADS), at_once = per_thread < 16 ? per_thread : 16;
#pragma unroll 1
    for (int first = 0; first < per_thread; first += at_once) {
        uint4 values[at_once];
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
            const int at = int(threadIdx.x) + (first + i) * THREADS, row = at / row_vectors, column = at % row_vectors;
            const int stage = column / stage_vectors % split_stages;  // beyond the first job's, the next one's
            const int vector = Fetcher<RowsOf>::vector_of(stage, column % stage_vectors);
            values[i] = make_uint4(0, 0, 0, 0);
            if (at < count && first_row + row < in.num_rows && vector >= 0)
                values[i] = load16(in.x + size_t(first_row + row) * SIZE_K + vector * 8);
        }
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
            const int at = int(threadIdx.x) + (first + i) * THREADS, row = at / row_vectors, column = at % row_vectors;
            const int slot = column / stage_vectors;
            if (at < count && slot < num_filled)
                shared.stage(slot).x[row][column % stage_vectors ^ row % 8] = values[i];
        }
    }
}

/// The operands of one step of a warp: 16 of K.
struct Fragments {
    uint32_t weight[warp_tiles][4], x[num_batch_tiles][2];

    /// Step i of the warp's: the chunk `i / chunk_steps * WARPS_PER_ROW + along` of the stage has it. The bits of the
    /// three parts of an address never overlap.
    TINYVLLM_DEVICE void read(const Stage& stage, int i) {
        const int lane = block_lane(), across = block_warp() % warps_across, along = block_warp() / warps_across;
        const int row_swizzle = lane % 8, first = along * chunk_steps * 2;
        const int step = (i / chunk_steps * WARPS_PER_ROW * chunk_steps + i % chunk_steps) * 2;
        const int weight_row = across * ROWS_PER_WARP + lane % 16;
        const int weight_vector = (first + lane / 16) ^ row_swizzle ^ step;
#pragma unroll
        for (int tile = 0; tile < warp_tiles; ++tile)
            ldmatrix_x4(weight[tile], &stage.weight[weight_row + tile * tile_rows][weight_vector]);
        const int x_vector = (first + lane / 8 % 2) ^ row_swizzle ^ step;
        if constexpr (num_batch_tiles == 1) {
            ldmatrix_x2(x[0], &stage.x[lane % 8][x_vector]);
        } else {
#pragma unroll
            for (int j = 0; j < num_batch_tiles; j += 2) {
                uint32_t r[4];  // two registers for each of two tiles
                ldmatrix_x4(r, &stage.x[j * 8 + lane % 8 + lane / 16 * 8][x_vector]);
                x[j][0] = r[0], x[j][1] = r[1], x[j + 1][0] = r[2], x[j + 1][1] = r[3];
            }
        }
    }
};

using Accumulators = float[warp_tiles][num_batch_tiles][4];

TINYVLLM_DEVICE void multiply(Accumulators& d, const Stage& stage) {
    Fragments fragments[2];
    fragments[0].read(stage, 0);
#pragma unroll
    for (int i = 0; i < stage_steps; ++i) {
        if (i + 1 < stage_steps) fragments[(i + 1) % 2].read(stage, i + 1);
        const Fragments& now = fragments[i % 2];
#pragma unroll
        for (int tile = 0; tile < warp_tiles; ++tile)
#pragma unroll
            for (int j = 0; j < num_batch_tiles; ++j) mma_bf16(d[tile][j], now.weight[tile], now.x[j]);
    }
}

/// Leaves a warp's sums where the warps that finish them find them.
TINYVLLM_DEVICE void share(Sums& sums, const Accumulators& d) {
    const int across = block_warp() % warps_across, along = block_warp() / warps_across;
#pragma unroll
    for (int tile = 0; tile < warp_tiles; ++tile)
#pragma unroll
        for (int j = 0; j < num_batch_tiles; ++j)
            sums[along][across * warp_tiles + tile][j][block_lane()] =
                make_float4(d[tile][j][0], d[tile][j][1], d[tile][j][2], d[tile][j][3]);
}

/// The units (a tile and eight rows of x) that a warp finishes: all of the same rows of x.
struct Units {
    int batch_tile, first_tile;

    TINYVLLM_DEVICE Units() : batch_tile(block_warp() % num_batch_tiles), first_tile(block_warp() / num_batch_tiles) {}
    TINYVLLM_DEVICE int tile(int i) const { return first_tile + i * tiles_at_once; }
    TINYVLLM_DEVICE bool has(int i) const { return first_tile < tiles_at_once && tile(i) < block_tiles; }
};

#if SPLIT > 1
/// Adds up what the blocks that share a job have: true in the block that arrived last, which has it all.
/// The order of the additions is that of the splits, whoever is last.
TINYVLLM_DEVICE bool add_splits(Shared& shared, const Input& in, int job, const Units& units,
                                float4 (&sums)[units_per_warp]) {
    const int lane = block_lane();
    Part* parts = reinterpret_cast<Part*>(in.workspace) + size_t(job) * SPLIT;
#pragma unroll
    for (int i = 0; i < units_per_warp; ++i)
        if (units.has(i)) parts[blockIdx.y][units.tile(i)][units.batch_tile][lane] = sums[i];
    __syncthreads();  // the block's sums are written before its thread 0 publishes them
    if (threadIdx.x == 0) shared.is_last[0] = is_last_arrival(&in.counters[job], SPLIT);
    __syncthreads();  // the verdict is there before it is read, and what the other blocks published is seen
    if (!shared.is_last[0]) return false;
#pragma unroll
    for (int i = 0; i < units_per_warp; ++i) {
        sums[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (!units.has(i)) continue;
#pragma unroll
        for (int split = 0; split < SPLIT; ++split) add4(sums[i], parts[split][units.tile(i)][units.batch_tile][lane]);
    }
    return true;
}
#endif

/// All tiles of this block, `rows_of(tile)` giving their rows: job blockIdx.x, and those gridDim.x further on. No block
/// is without a job.
template <class RowsOf, class Epilogue>
TINYVLLM_DEVICE void project(const Input& in, const bf16* weight, int num_outputs, int num_tiles, RowsOf rows_of,
                             Epilogue& epilogue) {
    Shared& shared = *dynamic_shared<Shared>();
    const int lane = block_lane(), pair = lane / 4, first_row = int(blockIdx.z) * BATCH_ROWS;
    const int first_tile = int(blockIdx.x) * block_tiles;
    Fetcher<RowsOf> fetcher{in, weight, num_outputs, num_tiles, first_row, rows_of, first_tile, 0, {}};
    fetcher.find_rows();
    int num_filled = 0;
#pragma unroll 1
    for (int slot = 0; slot < num_ahead; ++slot) {
        if (fetcher.has_next()) {
            fetcher.start_weights(shared.stage(slot));
            fetcher.advance();
            ++num_filled;
        }
        cp_async_commit();
    }
    pdl_launch_dependents();
    pdl_wait();  // x, and what the epilogue reads, are the predecessor's
    fill_first_x<RowsOf>(shared, in, first_row, num_filled);

    const Units units;
    const int row_of_x = first_row + units.batch_tile * 8 + lane % 4 * 2;  // of this lane's results, and the next one
    typename Epilogue::Token tokens[2] = {};
    bool has_row[2];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        has_row[which] = units.has(0) && row_of_x + which < in.num_rows;
        if (has_row[which]) tokens[which] = epilogue.token(row_of_x + which);
    }
    int slot = 0;
    for (int tile = first_tile; tile < num_tiles; tile += int(gridDim.x) * block_tiles) {
        const auto place = [&](int i, int which) {
            const TileRows rows = rows_of(tile + units.tile(i));
            return Place{rows.low + pair, rows.high + pair, row_of_x + which, which};
        };
        const auto has_output = [&](int i, int which) {
            return has_row[which] && units.has(i) && tile + units.tile(i) < num_tiles;
        };
        typename Epilogue::Early early[units_per_warp][2] = {};
#pragma unroll
        for (int i = 0; i < units_per_warp; ++i)
#pragma unroll
            for (int which = 0; which < 2; ++which)
                if (has_output(i, which)) early[i][which] = epilogue.early(tokens[which], place(i, which));
        Accumulators d = {};
#pragma unroll 1
        for (int stage = 0; stage < split_stages; ++stage) {
            cp_async_wait<num_ahead - 1>();
            // The stage's copies by all threads have landed, and all warps are done with the one before, which is
            // overwritten next.
            __syncthreads();
            fetcher.fetch(shared.stage(slot == 0 ? num_ahead : slot - 1));
            multiply(d, shared.stage(slot));
            slot = slot == num_ahead ? 0 : slot + 1;
        }
#if ONE_JOB
        __syncthreads();  // all warps are done with the ring: the sums go there
#endif
        share(shared.sums(), d);
        // The sums of all warps are there before they are added up; the next job's overwrite them after the barriers
        // of its stages.
        __syncthreads();
        float4 sums[units_per_warp];
#pragma unroll
        for (int i = 0; i < units_per_warp; ++i) {
            sums[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (!units.has(i)) continue;
#pragma unroll
            for (int along = 0; along < WARPS_PER_ROW; ++along)
                add4(sums[i], shared.sums()[along][units.tile(i)][units.batch_tile][lane]);
        }
#if SPLIT > 1
        const int num_jobs = ceil_div(num_tiles, block_tiles);
        if (!add_splits(shared, in, int(blockIdx.z) * num_jobs + tile / block_tiles, units, sums)) continue;
#endif
#pragma unroll
        for (int i = 0; i < units_per_warp; ++i) {
            const float low[2] = {sums[i].x, sums[i].y}, high[2] = {sums[i].z, sums[i].w};
#pragma unroll
            for (int which = 0; which < 2; ++which)
                if (has_output(i, which))
                    epilogue.store(tokens[which], early[i][which], place(i, which), low[which], high[which]);
        }
    }
}

}  // namespace projection
