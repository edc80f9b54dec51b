// The core for one row of x: products and sums in float32.
//
// WARPS_PER_ROW warps side by side share a weight row, so that a thread's part of x stays in its registers while
// ROWS_PER_WARP rows (and, with fewer blocks than tiles, further tiles) go by: x is read once a block.
//
//                      vector 0 .. 31   32 .. 63  ...             (a vector is 8 neighbours: 16 bytes)
//   row 0 of the tile  [ warp 0 lanes ][ warp 1  ] ... [ warp 7 ]
//   row 1              [ warp 0 lanes ][ warp 1  ] ...              with WARPS_PER_ROW = 8 and K = 2048
//
// Where a row is longer than the loads in flight allow, it is done in chunks of `chunk_steps` vectors a lane.
#pragma once

namespace projection {

constexpr int num_warps = THREADS / warp_size;
constexpr int num_groups = num_warps / WARPS_PER_ROW;
constexpr int tile_rows = num_groups * ROWS_PER_WARP;
constexpr int tile_pairs = tile_rows / 2;
constexpr int lanes_per_row = WARPS_PER_ROW * warp_size;
constexpr int num_vectors = SIZE_K / 8;
constexpr int num_steps = ceil_div(num_vectors, lanes_per_row);
constexpr int most_steps = LOADS > ROWS_PER_WARP ? LOADS / ROWS_PER_WARP : 1;
constexpr int chunk_steps = num_steps < most_steps ? num_steps : most_steps;
constexpr int num_chunks = ceil_div(num_steps, chunk_steps);
constexpr bool is_whole = num_vectors == num_chunks * chunk_steps * lanes_per_row;
constexpr int num_chains = ROWS_PER_WARP < 4 ? 2 : 1;
static_assert(num_groups == 1 || num_groups % 2 == 0, "a group's rows are in one run of the tile");
static_assert(tile_rows % 2 == 0 && tile_pairs <= warp_size, "one warp finishes a tile");

using Row = uint4[chunk_steps];

/// The sums over the 32 lanes of `rows` values each: lane l receives the sum of value l / (32 / rows).
/// Each exchange halves the number of values instead of the number of lanes: 14 shuffles for 8 values, not 40.
template <int rows>
TINYVLLM_DEVICE float sum_rows(float (&values)[rows]) {
    const int lane = block_lane();
#pragma unroll
    for (int half = rows / 2; half >= 1; half /= 2) {
        const int offset = 32 * half / rows;
        const bool is_upper = lane & offset;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const float given = is_upper ? values[i] : values[i + half];
            const float kept = is_upper ? values[i + half] : values[i];
            values[i] = kept + __shfl_xor_sync(full_warp, given, offset);
        }
    }
#pragma unroll
    for (int offset = 16 / rows; offset >= 1; offset /= 2)
        values[0] += __shfl_xor_sync(full_warp, values[0], offset);
    return values[0];
}

/// The vectors of this lane in one chunk of a row; zeros beyond its end.
template <uint4 (*load)(const void*)>
TINYVLLM_DEVICE void load_chunk(Row& to, const bf16* row, int chunk, int column) {
#pragma unroll
    for (int step = 0; step < chunk_steps; ++step) {
        const int vector = (chunk * chunk_steps + step) * lanes_per_row + column;
        to[step] = make_uint4(0, 0, 0, 0);
        if (is_whole || vector < num_vectors) to[step] = load(row + vector * 8);
    }
}

TINYVLLM_DEVICE const bf16* row_at(const bf16* weight, TileRows rows, int num_outputs, int local) {
    int row = local < tile_pairs ? rows.low + local : rows.high + local - tile_pairs;
    if (GUARD_ROWS) row = min(row, num_outputs - 1);  // beyond the last, it repeats the last
    return weight + size_t(row) * SIZE_K;
}

/// One chunk of all rows of a tile that this warp works on.
TINYVLLM_DEVICE void load_weights(Row (&to)[ROWS_PER_WARP], const bf16* weight, TileRows rows, int num_outputs,
                                  int chunk, int group, int column) {
    // The rows of a group follow each other in memory (where it has the whole tile, in two runs): one or two addresses
    // and constant offsets do, if no row must be guarded.
    constexpr int run = num_groups == 1 ? tile_pairs : ROWS_PER_WARP;
    const int first = group * ROWS_PER_WARP;
    const bf16* const runs[2] = {row_at(weight, rows, num_outputs, first),
                                 row_at(weight, rows, num_outputs, num_groups == 1 ? tile_pairs : first)};
#pragma unroll
    for (int i = 0; i < ROWS_PER_WARP; ++i) {
        const bf16* row = GUARD_ROWS ? row_at(weight, rows, num_outputs, first + i) : runs[i / run] + i % run * SIZE_K;
        load_chunk<load16_once>(to[i], row, chunk, column);
    }
}

/// Eight neighbours of x as the products need them: times the norm's weight in float32, or just as they came.
#if HAS_NORM
struct Eight {
    float values[8];

    /// Takes x and the norm's weight; adds the squares of x to `squares`.
    TINYVLLM_DEVICE void set(const uint4& x, const uint4& norm, float& squares) {
        float scale[8];
        unpack8(values, x);
        unpack8(scale, norm);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            squares = fmaf(values[i], values[i], squares);
            values[i] *= scale[i];
        }
    }

    TINYVLLM_DEVICE float2 pair(int i) const { return make_float2(values[2 * i], values[2 * i + 1]); }
};
#else
struct Eight {
    uint4 packed;

    TINYVLLM_DEVICE void set(const uint4& x, const uint4&, float&) { packed = x; }
    TINYVLLM_DEVICE float2 pair(int i) const { return unpack_bf16(word(packed, i)); }
};
#endif

/// Makes a chunk of x ready for the products; its squares are added to `squares`.
TINYVLLM_DEVICE void set_x(Eight (&x)[chunk_steps], float& squares, const Row& vectors, const Row& norm) {
#pragma unroll
    for (int step = 0; step < chunk_steps; ++step) x[step].set(vectors[step], norm[step], squares);
}

/// Adds the products of eight x and the weights of all rows. Few rows get two chains of additions each, so that one
/// need not wait for the other.
TINYVLLM_DEVICE void add_products(float (&sums)[ROWS_PER_WARP][num_chains], const Row (&w)[ROWS_PER_WARP],
                                  const Eight& x, int step) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        const float2 x_pair = x.pair(pair);
#pragma unroll
        for (int i = 0; i < ROWS_PER_WARP; ++i) {
            const float2 w_pair = unpack_bf16(word(w[i][step], pair));
            sums[i][0] = fmaf(w_pair.x, x_pair.x, sums[i][0]);
            sums[i][num_chains - 1] = fmaf(w_pair.y, x_pair.y, sums[i][num_chains - 1]);
        }
    }
}

template <int count>
TINYVLLM_DEVICE float add_up(const float (&values)[count]) {
    float sum = values[0];
#pragma unroll
    for (int i = 1; i < count; ++i) sum += values[i];
    return sum;
}

/// All tiles of this block, `rows_of(tile)` giving their rows: blockIdx.x, and those gridDim.x further on. No block is
/// without a tile.
template <class RowsOf, class Epilogue>
TINYVLLM_DEVICE void project(const Input& in, const bf16* weight, int num_outputs, int num_tiles, RowsOf rows_of,
                             Epilogue& epilogue) {
    __shared__ alignas(16) float partial[2][tile_rows][WARPS_PER_ROW];
    __shared__ alignas(16) float partial_squares[WARPS_PER_ROW];
    const int lane = block_lane(), warp = block_warp();
    const int group = num_groups == 1 ? 0 : warp / WARPS_PER_ROW, slice = num_groups == 1 ? warp : warp % WARPS_PER_ROW;
    const int column = slice * warp_size + lane;
    const bool finishes = threadIdx.x < tile_pairs;
    const int first_tile = blockIdx.x;

    Row w[ROWS_PER_WARP], norm;
    load_weights(w, weight, rows_of(first_tile), num_outputs, 0, group, column);
    if (HAS_NORM) load_chunk<load16_constant>(norm, in.norm, 0, column);
    pdl_launch_dependents();
    pdl_wait();  // x, and what the epilogue reads, are the predecessor's

    // Everything that the first tile needs is asked for before anything is used, be it a weight that is still on its way.
    Row vectors;
    load_chunk<load16>(vectors, in.x, 0, column);
    const auto place_of = [=](TileRows rows) {
        return Place{rows.low + int(threadIdx.x), rows.high + int(threadIdx.x), 0, 0};
    };
    typename Epilogue::Token token{};
    typename Epilogue::Early early{};
    if (finishes) {
        token = epilogue.token(0);
        early = epilogue.early(token, place_of(rows_of(first_tile)));
    }
    Eight x[chunk_steps];
    float squares = 0.0f, rstd = 1.0f;
    if (num_chunks == 1) set_x(x, squares, vectors, norm);
    int buffer = 0, tile = first_tile;
    do {
        const Place place = place_of(rows_of(tile));
        if (finishes && tile != first_tile) early = epilogue.early(token, place);
        float sums[ROWS_PER_WARP][num_chains] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < num_chunks; ++chunk) {
            if (num_chunks > 1) {
                float chunk_squares = 0.0f;
                if (chunk > 0 || tile != first_tile) load_chunk<load16>(vectors, in.x, chunk, column);
                set_x(x, chunk_squares, vectors, norm);
                if (tile == first_tile) squares += chunk_squares;
            }
#pragma unroll
            for (int step = 0; step < chunk_steps; ++step) add_products(sums, w, x[step], step);
            // The next weights start to arrive while these sums are reduced.
            const bool ends_tile = chunk + 1 == num_chunks;
            const int next_tile = ends_tile ? tile + int(gridDim.x) : tile, next_chunk = ends_tile ? 0 : chunk + 1;
            if (next_tile < num_tiles) {
                load_weights(w, weight, rows_of(next_tile), num_outputs, next_chunk, group, column);
                if (HAS_NORM && num_chunks > 1) load_chunk<load16_constant>(norm, in.norm, next_chunk, column);
            }
        }
        float lane_sums[ROWS_PER_WARP];
#pragma unroll
        for (int i = 0; i < ROWS_PER_WARP; ++i) lane_sums[i] = add_up(sums[i]);
        const float sum = sum_rows(lane_sums);
        constexpr int lanes_per_sum = warp_size / ROWS_PER_WARP;
        if (lane % lanes_per_sum == 0)
            partial[buffer][group * ROWS_PER_WARP + lane / lanes_per_sum][slice] = sum;
        if (HAS_NORM && tile == first_tile) {
            squares = warp_sum(squares);
            if (group == 0 && lane == 0) partial_squares[slice] = squares;
        }
        // This tile's sums are there before they are added up, and those of the last tile but one, in the same
        // buffer, had been read before the barrier of the last tile.
        __syncthreads();
        if (finishes) {
            if (HAS_NORM && tile == first_tile)
                rstd = 1.0f / sqrtf(add_up(partial_squares) * (1.0f / SIZE_K) + in.eps);
            epilogue.store(token, early, place, add_up(partial[buffer][threadIdx.x]) * rstd,
                           add_up(partial[buffer][tile_pairs + threadIdx.x]) * rstd);
        }
        buffer ^= 1;
        tile += gridDim.x;
    } while (tile < num_tiles);
}

}  // namespace projection
