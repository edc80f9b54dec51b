// The core for one row of x: products and sums in float32.
//
// A warp has a tile of ROWS_PER_WARP weight rows for itself, and then the next one of its tiles; no barrier after x has
// been staged in shared memory. In a step it takes 512 bytes of each row, 16 a lane:
//
//                      vector 0 .. 31   32 .. 63  ...             (a vector is 8 neighbours: 16 bytes)
//   row 0 of the tile  [    step 0    ][  step 1  ] ... [ step 7 ]
//   row 1              [    step 0    ][  step 1  ] ...              with K = 2048
//
// Weights come through a ring in shared memory, NUM_STAGES steps deep for each warp. It holds more than memory needs to
// have in flight, with few registers, so that the next kernel fits on the SM as well and fills its own ring while this
// one runs: memory then has work while a kernel ends and the next one waits for it.
//
// Defines besides those of projection.cuh: NUM_STAGES (of the ring, at most the steps of a row).
#pragma once

namespace projection {

constexpr int num_warps = THREADS / warp_size;
constexpr int tile_rows = ROWS_PER_WARP, tile_pairs = tile_rows / 2;
constexpr int num_vectors = SIZE_K / 8;
constexpr int num_steps = ceil_div(num_vectors, warp_size);
constexpr bool is_whole = num_vectors % warp_size == 0;
constexpr int depth = num_steps < NUM_STAGES ? num_steps : NUM_STAGES;  // steps in flight, of at most two tiles
constexpr int num_chains = tile_rows < 4 ? 2 : 1;
static_assert(tile_rows >= 2 && (tile_rows & (tile_rows - 1)) == 0, "a tile is pairs, and its sums are halved");

/// The sums over the 32 lanes of `rows` values each: lane l receives the sum of value l / (32 / rows).
/// Each exchange halves the number of values instead of the number of lanes: 6 shuffles for 4 values, not 20.
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

/// x as the products need it, in shared memory: times the norm's weight in float32, or just as it came.
#if HAS_NORM
struct StagedX {
    float4 low[num_steps * warp_size], high[num_steps * warp_size];  // of each vector the first and the last four

    /// Takes a vector of x and of the norm's weight; returns the sum of the squares of x.
    TINYVLLM_DEVICE float set(int vector, const uint4& x, const uint4& norm) {
        float values[8], scale[8], squares = 0.0f;
        unpack8(values, x);
        unpack8(scale, norm);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            squares = fmaf(values[i], values[i], squares);
            values[i] *= scale[i];
        }
        low[vector] = make_float4(values[0], values[1], values[2], values[3]);
        high[vector] = make_float4(values[4], values[5], values[6], values[7]);
        return squares;
    }

    TINYVLLM_DEVICE void get(float (&values)[8], int vector) const {
        const float4 a = low[vector], b = high[vector];
        values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
        values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
    }
};
#else
struct StagedX {
    uint4 vectors[num_steps * warp_size];

    TINYVLLM_DEVICE float set(int vector, const uint4& x, const uint4&) {
        vectors[vector] = x;
        return 0.0f;
    }

    TINYVLLM_DEVICE void get(float (&values)[8], int vector) const { unpack8(values, vectors[vector]); }
};
#endif

struct Shared {
    uint4 ring[num_warps][depth][tile_rows][warp_size];
    StagedX x;
    float squares[num_warps];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same size");

/// The tiles of this warp and their weights in flight, in the order in which it uses them.
///
/// Neighbouring tiles are in different blocks, so that each has as many. A lane copies what it reads itself and nothing
/// else, so that no barrier is needed.
template <class RowsOf>
class Ring {
public:
    TINYVLLM_DEVICE Ring(Shared& shared, const bf16* weight, int num_outputs, int num_tiles, RowsOf rows_of)
        : own_(&shared.ring[block_warp()][0][0][block_lane()]), weight_(weight), num_outputs_(num_outputs),
          num_tiles_(num_tiles), tile_(block_warp() * gridDim.x + blockIdx.x), rows_of_(rows_of) {
        start_tile();
    }

    /// The tile whose first step is the oldest, or one beyond the last.
    TINYVLLM_DEVICE int tile() const { return tile_; }

    /// Starts the copies of the next step, if there is one, to where the oldest was; a group in any case.
    TINYVLLM_DEVICE void fetch() {
        if (step_ == num_steps) {
            step_ = 0;
            tile_ += num_warps * gridDim.x;
            start_tile();
        }
        if (tile_ < num_tiles_) copy_step();
        cp_async_commit();
        ++step_;
        fetched_ = fetched_ + 1 == depth ? 0 : fetched_ + 1;
    }

    TINYVLLM_DEVICE void wait() {
        cp_async_wait<depth - 1>();  // the oldest step has landed, as far as this lane reads it
    }

    /// This lane's vector of the oldest step.
    TINYVLLM_DEVICE uint4 vector(int row) const { return load16(slot(oldest_, row)); }

    /// When all its vectors have been read.
    TINYVLLM_DEVICE void pop() { oldest_ = oldest_ + 1 == depth ? 0 : oldest_ + 1; }

private:
    TINYVLLM_DEVICE uint4* slot(int stage, int row) const { return own_ + (stage * tile_rows + row) * warp_size; }

    TINYVLLM_DEVICE void start_tile() {
        rows_ = rows_of_(min(tile_, num_tiles_ - 1));
        low_ = weight_ + size_t(rows_.low) * SIZE_K + block_lane() * 8;
        high_ = weight_ + size_t(rows_.high) * SIZE_K + block_lane() * 8;
    }

    /// Neighbouring rows follow each other in memory: constant offsets do, if no row must be guarded.
    TINYVLLM_DEVICE const bf16* address(int i) const {
        int row = i % tile_pairs;
        if (GUARD_ROWS) {  // beyond the last, it repeats the last
            const int first = i < tile_pairs ? rows_.low : rows_.high;
            row = min(first + row, num_outputs_ - 1) - first;
        }
        return (i < tile_pairs ? low_ : high_) + row * SIZE_K + step_ * (warp_size * 8);
    }

    TINYVLLM_DEVICE void copy_step() const {
        const bool is_there = is_whole || step_ * warp_size + block_lane() < num_vectors;
#pragma unroll
        for (int i = 0; i < tile_rows; ++i) cp_async16_or_zero(slot(fetched_, i), address(i), is_there);
    }

    uint4* own_;
    const bf16 *weight_, *low_, *high_;  // the rows of the tile that is fetched, at this lane's first vector
    int num_outputs_, num_tiles_;
    int tile_, step_ = 0;  // what is fetched next
    TileRows rows_;
    RowsOf rows_of_;
    int fetched_ = 0, oldest_ = 0;  // stages
};

/// Adds the products of eight x and the weights of all rows. Few rows get two chains of additions each, so that one
/// need not wait for the other.
TINYVLLM_DEVICE void add_products(float (&sums)[tile_rows][num_chains], const uint4 (&w)[tile_rows],
                                  const float (&x)[8]) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
#pragma unroll
        for (int i = 0; i < tile_rows; ++i) {
            const float2 w_pair = unpack_bf16(word(w[i], pair));
            sums[i][0] = fmaf(w_pair.x, x[2 * pair], sums[i][0]);
            sums[i][num_chains - 1] = fmaf(w_pair.y, x[2 * pair + 1], sums[i][num_chains - 1]);
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

/// All tiles of this block, `rows_of(tile)` giving their rows. A warp may be without one.
template <class RowsOf, class Epilogue>
TINYVLLM_DEVICE void project(const Input& in, const bf16* weight, int num_outputs, int num_tiles, RowsOf rows_of,
                             Epilogue& epilogue) {
    constexpr int staged_vectors = ceil_div(num_steps * warp_size, THREADS);  // by each thread
    constexpr int lanes_per_row = warp_size / tile_rows;
    Shared& shared = *dynamic_shared<Shared>();
    const int lane = block_lane(), warp = block_warp(), pair = lane / lanes_per_row;
    const bool finishes = lane % lanes_per_row == 0 && lane < warp_size / 2;

    Ring<RowsOf> ring(shared, weight, num_outputs, num_tiles, rows_of);
    const int first_tile = ring.tile();
    for (int s = 0; s < depth; ++s) ring.fetch();
    uint4 x[staged_vectors], norm[staged_vectors];
#pragma unroll
    for (int i = 0; i < staged_vectors; ++i) {
        const int vector = i * THREADS + threadIdx.x;
        x[i] = norm[i] = make_uint4(0, 0, 0, 0);
        if (HAS_NORM && vector < num_vectors) norm[i] = load16_constant(in.norm + vector * 8);
    }
    pdl_launch_dependents();
    pdl_wait();  // x, and what the epilogue reads, are the predecessor's

    // Everything that comes from memory is asked for before anything is used.
#pragma unroll
    for (int i = 0; i < staged_vectors; ++i) {
        const int vector = i * THREADS + threadIdx.x;
        if (vector < num_vectors) x[i] = load16(in.x + vector * 8);
    }
    const auto place_of = [=](int tile) {
        const TileRows rows = rows_of(tile);
        return Place{rows.low + pair, rows.high + pair, 0, 0};
    };
    typename Epilogue::Token token{};
    typename Epilogue::Early early{};
    if (finishes && first_tile < num_tiles) {
        token = epilogue.token(0);
        early = epilogue.early(token, place_of(first_tile));
    }
    float squares = 0.0f, rstd = 1.0f;
#pragma unroll
    for (int i = 0; i < staged_vectors; ++i) {
        const int vector = i * THREADS + threadIdx.x;
        if (vector < num_steps * warp_size) squares += shared.x.set(vector, x[i], norm[i]);  // zeros beyond the end
    }
    if (HAS_NORM) {
        squares = warp_sum(squares);
        if (lane == 0) shared.squares[warp] = squares;
    }
    __syncthreads();  // x and the sums of its squares are there before any warp reads them
    if (HAS_NORM) rstd = 1.0f / sqrtf(add_up(shared.squares) * (1.0f / SIZE_K) + in.eps);

    for (int tile = first_tile; tile < num_tiles; tile = ring.tile()) {
        const Place place = place_of(tile);
        if (finishes && tile != first_tile) early = epilogue.early(token, place);
        float sums[tile_rows][num_chains] = {};
#pragma unroll 1
        for (int step = 0; step < num_steps; ++step) {
            float values[8];
            uint4 w[tile_rows];
            shared.x.get(values, step * warp_size + lane);
            ring.wait();
#pragma unroll
            for (int i = 0; i < tile_rows; ++i) w[i] = ring.vector(i);
            add_products(sums, w, values);
            ring.pop();
            ring.fetch();
        }
        float lane_sums[tile_rows];
#pragma unroll
        for (int i = 0; i < tile_rows; ++i) lane_sums[i] = add_up(sums[i]);
        // Lanes 0 to 15 have the sums of the low rows, the others those of the high ones.
        const float low = sum_rows(lane_sums) * rstd, high = __shfl_down_sync(full_warp, low, warp_size / 2);
        if (finishes) epilogue.store(token, early, place, low, high);
    }
}

}  // namespace projection
