// A linear layer added to the residual stream: the attention's output projection and the MLP's down projection.
//   Formula    residual[t][n] += sum over k of x[t][k] weight[n][k] + bias[n]
//   Reference  compose of linear_residual in tinyvllm/ops/catalogue.py
//   Shapes     residual [T, N], x [T, K], weight [N, K], bias [N] or null, bfloat16; K % 8 == 0 (SIZE_K)
//   Mapping    tiles of weight rows; see projection.cuh and the core that BATCH_ROWS selects. An element of the
//              residual is read and written by one thread
//   Numerics   products exact, float32 sums, the residual included; rounds once
//   Traffic    2 N K bytes of weights for up to BATCH_ROWS tokens; bandwidth
#include "tinyvllm/prelude.cuh"
#define HAS_NORM 0
#include "projection.cuh"

struct ResidualEpilogue {
    bf16* residual;
    const bf16* bias;
    int num_outputs;

    struct Token {};
    struct Early {  // as loaded: a conversion here would wait for the load
        bf16 low{0}, high{0}, low_bias{0}, high_bias{0};
    };

    TINYVLLM_DEVICE Token token(int) const { return {}; }

    TINYVLLM_DEVICE Early early(Token, Place place) const {
        const bf16* row = residual + size_t(place.row_of_x) * num_outputs;
        Early early;
        if (place.low_row < num_outputs) early.low = row[place.low_row];
        if (place.high_row < num_outputs) early.high = row[place.high_row];
        if (bias == nullptr) return early;
        if (place.low_row < num_outputs) early.low_bias = bias[place.low_row];
        if (place.high_row < num_outputs) early.high_bias = bias[place.high_row];
        return early;
    }

    TINYVLLM_DEVICE void store(Token, Early early, Place place, float low, float high) const {
        bf16* row = residual + size_t(place.row_of_x) * num_outputs;
        low += to_float(early.low) + to_float(early.low_bias);
        high += to_float(early.high) + to_float(early.high_bias);
        if (place.low_row < num_outputs) row[place.low_row] = from_float<bf16>(low);
        if (place.high_row < num_outputs) row[place.high_row] = from_float<bf16>(high);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, min_blocks)
    linear_residual(bf16* residual, float* workspace, uint32_t* counters, const bf16* x, const bf16* weight,
                    const bf16* bias, int num_rows, int num_outputs, int num_tiles) {
    const Input in{x, num_rows, nullptr, 0.0f, workspace, counters};
    ResidualEpilogue epilogue{residual, bias, num_outputs};
    projection::project(in, weight, num_outputs, num_tiles, neighbouring_rows<projection::tile_pairs>, epilogue);
}
