// The end of a step in one: final norm, logits, and (lm_head_argmax) the most likely token.
//   Formula    logits[t][v] = norm(x[t]) . weight[v];  token_ids[t] = the lowest v with the largest logit, or -1 if
//              any logit of the row is NaN
//   Reference  compose of rms_norm_lm_head in tinyvllm/ops/catalogue.py; numpy.argmax
//   Shapes     logits [T, V] float32, token_ids [T] int32, x [T, E], norm [E], weight [V, E] bfloat16; E % 8 == 0
//              (SIZE_K); best_values, best_indices [T, gridDim.x] scratch; counters [gridDim.z], zero before first use
//   Mapping    tiles of weight rows; see projection.cuh and the core that BATCH_ROWS selects. Each thread keeps the
//              best of its outputs, a warp the best of its threads', the last block the best of all blocks'
//   Numerics   float32 sums, not rounded: 1 / rms multiplies them. One token: x times the norm's weight in float32,
//              several: rounded to bfloat16. The larger of two logits is taken exactly, whoever computed them
//   Traffic    2 V E bytes of weights for up to BATCH_ROWS tokens; bandwidth
#include "tinyvllm/prelude.cuh"
#define HAS_NORM (BATCH_ROWS == 1)
#include "projection.cuh"

constexpr int no_index = 0x7fffffff;
constexpr int rows_per_lane = BATCH_ROWS == 1 ? 1 : 2;

/// The best logit so far. NaN is kept as (infinity, -1), which beats everything.
struct Best {
    float value = -INFINITY;
    int index = no_index;

    TINYVLLM_DEVICE void take(const Best& other) {
        if (other.value > value || (other.value == value && other.index < index)) *this = other;
    }

    TINYVLLM_DEVICE void take(float logit, int row) { take(isnan(logit) ? Best{INFINITY, -1} : Best{logit, row}); }

    TINYVLLM_DEVICE void take_from_lane(int lane_mask) {
        take(Best{__shfl_xor_sync(full_warp, value, lane_mask), __shfl_xor_sync(full_warp, index, lane_mask)});
    }
};

struct NothingEarly {
    struct Token {};
    struct Early {};

    TINYVLLM_DEVICE Token token(int) const { return {}; }
    TINYVLLM_DEVICE Early early(Token, Place) const { return {}; }
};

struct ArgmaxEpilogue : NothingEarly {
    Best best[rows_per_lane];

    // A row beyond the vocabulary, in the last tile, has the logit of its last token: it loses by its index.
    TINYVLLM_DEVICE void store(Token, Early, Place place, float low, float high) {
        best[place.which].take(low, place.low_row);
        best[place.which].take(high, place.high_row);
    }
};

struct LogitsEpilogue : NothingEarly {
    float* logits;
    int num_outputs;

    TINYVLLM_DEVICE void store(Token, Early, Place place, float low, float high) const {
        float* row = logits + size_t(place.row_of_x) * num_outputs;
        if (place.low_row < num_outputs) row[place.low_row] = low;
        if (place.high_row < num_outputs) row[place.high_row] = high;
    }
};

TINYVLLM_DEVICE void store_best(float* best_values, int* best_indices, int row, const Best& best) {
    best_values[size_t(row) * gridDim.x + blockIdx.x] = best.value;
    best_indices[size_t(row) * gridDim.x + blockIdx.x] = best.index;
}

/// Writes this block's best of each row of x to column blockIdx.x of the scratch arrays.
TINYVLLM_DEVICE void store_block_best(float* best_values, int* best_indices, ArgmaxEpilogue& epilogue, int num_rows) {
    constexpr int num_warps = THREADS / warp_size;
#if BATCH_ROWS == 1
    __shared__ float values[num_warps];
    __shared__ int indices[num_warps];
    Best& best = epilogue.best[0];
#pragma unroll
    for (int offset = 1; offset < warp_size; offset *= 2) best.take_from_lane(offset);
    if (block_lane() == 0) values[block_warp()] = best.value, indices[block_warp()] = best.index;
    __syncthreads();  // the best of all warps are there before thread 0 compares them
    if (threadIdx.x > 0) return;
    for (int w = 1; w < num_warps; ++w) best.take(Best{values[w], indices[w]});
    store_best(best_values, best_indices, 0, best);
#else
    constexpr int num_batch_tiles = BATCH_ROWS / 8;
    __shared__ float values[num_warps][8];
    __shared__ int indices[num_warps][8];
    const int lane = block_lane(), warp = block_warp(), row = int(threadIdx.x);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        Best& best = epilogue.best[which];
        // lane % 4 says which row; the other bits hold pairs.
#pragma unroll
        for (int offset = 4; offset < warp_size; offset *= 2) best.take_from_lane(offset);
        if (lane < 4) values[warp][lane * 2 + which] = best.value, indices[warp][lane * 2 + which] = best.index;
    }
    __syncthreads();  // the best of all warps are there before they are compared
    const int row_of_x = int(blockIdx.z) * BATCH_ROWS + row;
    if (row >= BATCH_ROWS || row_of_x >= num_rows) return;
    Best best;
    for (int w = row / 8; w < num_warps; w += num_batch_tiles)
        best.take(Best{values[w][row % 8], indices[w][row % 8]});
    store_best(best_values, best_indices, row_of_x, best);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, min_blocks)
    lm_head_argmax(int* token_ids, float* best_values, int* best_indices, uint32_t* counters, const bf16* x,
                   const bf16* norm, const bf16* weight, int num_rows, int num_outputs, int num_tiles, float eps) {
    __shared__ bool is_last;
    const Input in{x, num_rows, norm, eps};
    ArgmaxEpilogue epilogue;
    projection::project(in, weight, num_outputs, num_tiles, neighbouring_rows<projection::tile_pairs>, epilogue);
    store_block_best(best_values, best_indices, epilogue, num_rows);
    __syncthreads();  // the block's best of all rows are written before its thread 0 publishes them
    if (threadIdx.x == 0) is_last = is_last_arrival(&counters[blockIdx.z], gridDim.x);
    __syncthreads();  // the verdict is there before it is read, and what the other blocks published is seen
    if (!is_last) return;
    const int first_row = int(blockIdx.z) * BATCH_ROWS, end_row = min(first_row + BATCH_ROWS, num_rows);
    for (int row = first_row + block_warp(); row < end_row; row += THREADS / warp_size) {
        Best best;
        for (int block = block_lane(); block < int(gridDim.x); block += warp_size) {
            const size_t from = size_t(row) * gridDim.x + block;
            best.take(Best{best_values[from], best_indices[from]});
        }
#pragma unroll
        for (int offset = 1; offset < warp_size; offset *= 2) best.take_from_lane(offset);
        if (block_lane() == 0) token_ids[row] = best.index;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, min_blocks)
    lm_head_logits(float* logits, const bf16* x, const bf16* norm, const bf16* weight, int num_rows, int num_outputs,
                   int num_tiles, float eps) {
    const Input in{x, num_rows, norm, eps};
    LogitsEpilogue epilogue;
    epilogue.logits = logits;
    epilogue.num_outputs = num_outputs;
    projection::project(in, weight, num_outputs, num_tiles, neighbouring_rows<projection::tile_pairs>, epilogue);
}
