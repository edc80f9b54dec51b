// A linear layer for few rows.
//   Formula    out[t][n] = sum over k of x[t][k] weight[n][k] + bias[n]
//   Reference  tinyvllm/reference/linear.py
//   Shapes     out [T, N], x [T, K], weight [N, K], bias [N] or null, bfloat16; K % 8 == 0 (SIZE_K)
//   Mapping    tiles of weight rows; see projection.cuh and the core that BATCH_ROWS selects
//   Numerics   products exact, float32 sums, rounds once
//   Traffic    2 N K bytes of weights for up to BATCH_ROWS tokens; bandwidth
#include "tinyvllm/prelude.cuh"
#define HAS_NORM 0
#include "projection.cuh"

struct LinearEpilogue {
    bf16* out;
    const bf16* bias;
    int num_outputs;

    struct Token {};
    struct Early {  // as loaded: a conversion here would wait for the load
        bf16 low_bias{0}, high_bias{0};
    };

    TINYVLLM_DEVICE Token token(int) const { return {}; }

    TINYVLLM_DEVICE Early early(Token, Place place) const {
        Early early;
        if (bias == nullptr) return early;
        if (place.low_row < num_outputs) early.low_bias = bias[place.low_row];
        if (place.high_row < num_outputs) early.high_bias = bias[place.high_row];
        return early;
    }

    TINYVLLM_DEVICE void store(Token, Early early, Place place, float low, float high) const {
        bf16* row = out + size_t(place.row_of_x) * num_outputs;
        if (place.low_row < num_outputs) row[place.low_row] = from_float<bf16>(low + to_float(early.low_bias));
        if (place.high_row < num_outputs) row[place.high_row] = from_float<bf16>(high + to_float(early.high_bias));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, min_blocks)
    linear(bf16* out, float* workspace, uint32_t* counters, const bf16* x, const bf16* weight, const bf16* bias,
           int num_rows, int num_outputs, int num_tiles) {
    const Input in{x, num_rows, nullptr, 0.0f, workspace, counters};
    LinearEpilogue epilogue{out, bias, num_outputs};
    projection::project(in, weight, num_outputs, num_tiles, neighbouring_rows<projection::tile_pairs>, epilogue);
}
