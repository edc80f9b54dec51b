// Logits of rows that are normalised already, for few rows; lm_head.cu does the norm as well.
//   Formula    logits[t][v] = sum over k of x[t][k] weight[v][k]
//   Reference  tinyvllm/reference/linear.py
//   Shapes     logits [T, V] float32, x [T, K], weight [V, K] bfloat16; K % 8 == 0 (SIZE_K)
//   Mapping    tiles of weight rows; see projection.cuh and the core that BATCH_ROWS selects
//   Numerics   products exact, float32 sums, not rounded
//   Traffic    2 V K bytes of weights for up to BATCH_ROWS tokens; bandwidth
#include "tinyvllm/prelude.cuh"
#define HAS_NORM 0
#include "projection.cuh"

struct LogitsEpilogue {
    float* logits;
    int num_outputs;

    struct Token {};
    struct Early {};

    TINYVLLM_DEVICE Token token(int) const { return {}; }
    TINYVLLM_DEVICE Early early(Token, Place) const { return {}; }

    TINYVLLM_DEVICE void store(Token, Early, Place place, float low, float high) const {
        float* row = logits + size_t(place.row_of_x) * num_outputs;
        if (place.low_row < num_outputs) row[place.low_row] = low;
        if (place.high_row < num_outputs) row[place.high_row] = high;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, min_blocks)
    logits(float* logits, const bf16* x, const bf16* weight, int num_rows, int num_outputs, int num_tiles) {
    const Input in{x, num_rows};
    LogitsEpilogue epilogue{logits, num_outputs};
    projection::project(in, weight, num_outputs, num_tiles, neighbouring_rows<projection::tile_pairs>, epilogue);
}
