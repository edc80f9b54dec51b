// Draws the rows that min_p, top_k or top_p cut; leaves all others as sample.cu has drawn them.
//   Formula    w = exp(z); min_p keeps w >= min_p, top_k the first k in order, top_p those before which the mass is
//              below top_p of what is left; token[b] = argmax over the kept v of z + g, as in sample.cu
//   Reference  tinyvllm/reference/sampling.py
//   Shapes     token_ids, slots, positions [B] int32, slot_tokens [S] int32, row_max [B], logits [B, V],
//              adjusted [R, V] float32, columns [S]; V <= 2^20
//   Mapping    a block owns a row; its threads take tokens in turn
//   Numerics   z float32 with the reference's bits, w float32; masses add up as integers in units of 2^-44, exact up
//              to that rounding, so that the cut depends on no order; the goal is computed in float64
//   Traffic    8 V bytes a row where at most LIST_SIZE tokens are kept or share the cut's bucket (the second time
//              from L2), up to 60 V otherwise
#include "tinyvllm/prelude.cuh"
#include "philox.cuh"
#include "sample_order.cuh"
#include "sample_row.cuh"
#include "sample_select.cuh"

/// A row's tokens by z. As z <= 0, the bits of -z grow as z falls, and have no sign.
struct ScaledRow {
    const SamplingRow& row;
    const float* logits;
    float row_max;

    TINYVLLM_DEVICE static float z_at(uint64_t place) { return 0.0f - __uint_as_float(falling_bits_of(place)); }
    TINYVLLM_DEVICE static uint64_t mass_at(uint64_t place) { return mass_of(expf(z_at(place))); }

    /// False for tokens that cannot be chosen, or that min_p cuts.
    TINYVLLM_DEVICE bool place(int id, float x, uint64_t& place) const {
        const float distance = 0.0f - row.scaled(x, row_max);  // 0, not -0, for the largest
        if (!(distance < INFINITY)) return false;
        if (row.min_p > 0.0f && expf(-distance) < row.min_p) return false;
        place = place_of(distance, __float_as_uint(distance), id);
        return true;
    }
};

/// The least integer mass that is not below top_p of the total: a token is kept if the mass before it is below.
__device__ uint64_t mass_goal(float top_p, uint64_t total) {
    const double goal = double(top_p) * double(total);
    const uint64_t whole = uint64_t(goal);
    return max(whole + (double(whole) < goal), uint64_t(1));  // the first token stays, whatever top_p is
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_cut_rows(int* token_ids, int* slot_tokens, const float* row_max, const float* logits,
                    const float* adjusted, const int* slots, const int* positions, const float* temperature,
                    const float* top_p, const float* min_p, const int* top_k, const uint64_t* seed,
                    const int* completion_index, const int* rule_row, int vocab_size) {
    __shared__ Selection selection;
    pdl_launch_dependents();
    pdl_wait();  // row_max is the predecessor's
    const int b = blockIdx.x, slot = slots[b];
    if (slot < 0) return;
    const SamplingColumns columns = {temperature, top_p, min_p, top_k, seed, completion_index, rule_row};
    const SamplingRow row = read_row(columns, logits, adjusted, b, slot, positions[b], vocab_size);
    if (!row.is_cut() || !is_sound(row_max[b])) return;

    const ScaledRow scaled = {row, row.logits, row_max[b]};
    Candidates<ScaledRow> kept = {scaled, vocab_size, selection, everything, false};
    if (row.top_k > 0)
        cut_at_goal(kept, selection, [](uint64_t) { return uint64_t(1); },
                    [&](uint64_t) { return uint64_t(row.top_k); });
    if (row.top_p < 1.0f)
        cut_at_goal(kept, selection, [](uint64_t place) { return ScaledRow::mass_at(place); },
                    [&](uint64_t total) { return mass_goal(row.top_p, total); });
    uint64_t best = 0;
    kept.each([&](uint64_t place) {
        const uint32_t token = token_at(place);
        const uint64_t mine = standing(row.score(ScaledRow::z_at(place), token), token);
        best = best < mine ? mine : best;
    });
    best = block_best(best, selection.warp_sums);
    if (threadIdx.x == 0) token_ids[b] = slot_tokens[slot] = int(token_of(best));
}
