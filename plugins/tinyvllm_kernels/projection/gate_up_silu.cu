// The first half of the MLP in one: norm, gate and up projections, activation.
//   Formula    out[t][f] = silu(norm(x[t]) . weight[f]) * (norm(x[t]) . weight[F + f])
//   Reference  compose of rms_norm_gate_up_silu in tinyvllm/ops/catalogue.py
//   Shapes     out [T, F], x [T, E], norm [E], weight [2F, E] bfloat16, gates first; E % 8 == 0 (SIZE_K), F a multiple
//              of a tile's pairs
//   Mapping    a tile pairs weight rows f and F + f; see projection.cuh and the core that BATCH_ROWS selects
//   Numerics   float32 sums; one token: x times the norm's weight in float32, several: rounded to bfloat16. 1 / rms
//              multiplies the sums. Rounds once at the end
//   Traffic    4 F E bytes of weights for up to BATCH_ROWS tokens; bandwidth
#include "tinyvllm/prelude.cuh"
#define HAS_NORM (BATCH_ROWS == 1)
#include "../activation.cuh"
#include "projection.cuh"

struct GateUpEpilogue {
    bf16* out;
    int num_pairs;

    struct Token {};
    struct Early {};

    TINYVLLM_DEVICE Token token(int) const { return {}; }
    TINYVLLM_DEVICE Early early(Token, Place) const { return {}; }

    TINYVLLM_DEVICE void store(Token, Early, Place place, float gate, float up) const {
        out[size_t(place.row_of_x) * num_pairs + place.low_row] = from_float<bf16>(silu(gate) * up);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, min_blocks)
    gate_up_silu(bf16* out, float* workspace, uint32_t* counters, const bf16* x, const bf16* norm, const bf16* weight,
                 int num_rows, int num_pairs, int num_tiles, float eps) {
    const Input in{x, num_rows, norm, eps, workspace, counters};
    GateUpEpilogue epilogue{out, num_pairs};
    const auto rows_of = [=](int tile) {
        const int first = tile * projection::tile_pairs;
        return TileRows{first, num_pairs + first};
    };
    projection::project(in, weight, 2 * num_pairs, num_tiles, rows_of, epilogue);
}
