// How one row is drawn: its parameters, read from the device's columns, and a token's score in the race.
#pragma once

namespace tinyvllm {

/// The device's columns of sampling parameters, one entry a slot; tinyvllm/batch.py says what each means.
struct SamplingColumns {
    const float *temperature, *top_p, *min_p;
    const int* top_k;
    const uint64_t* seed;
    const int *completion_index, *rule_row;
};

struct SamplingRow {
    const float* logits;  // [V]: the model's, or a copy with the row's rules applied
    float temperature, top_p, min_p;
    int top_k;  // 0 where it keeps all
    RandomStream random;
    bool is_random;

    /// Whether min_p, top_k or top_p may leave a token out.
    TINYVLLM_DEVICE bool is_cut() const { return is_random && (top_k > 0 || top_p < 1.0f || min_p > 0.0f); }

    /// z: at most 0; subtracting first keeps any temperature from overflowing to anything but -inf. Both operations
    /// round as the reference's do, so z has its bits and equal values are equal here too.
    TINYVLLM_DEVICE float scaled(float x, float row_max) const { return (x - row_max) / temperature; }

    /// z + g, or z for a greedy row: the token with the largest is chosen.
    TINYVLLM_DEVICE float score(float z, uint32_t token_id) const {
        return is_random ? z + gumbel_of(random.word(token_id)) : z;
    }
};

TINYVLLM_DEVICE SamplingRow read_row(const SamplingColumns& columns, const float* logits, const float* adjusted,
                                     int row, int slot, int position, int vocab_size) {
    SamplingRow r;
    const int rule_row = columns.rule_row[slot];
    r.logits = rule_row >= 0 ? adjusted + size_t(rule_row) * vocab_size : logits + size_t(row) * vocab_size;
    r.is_random = columns.temperature[slot] > 0.0f;
    r.temperature = r.is_random ? columns.temperature[slot] : 1.0f;  // x - max is 0 exactly where x is the maximum
    r.top_p = columns.top_p[slot];
    r.min_p = columns.min_p[slot];
    r.top_k = columns.top_k[slot] < vocab_size ? columns.top_k[slot] : 0;
    r.random = make_random_stream(columns.seed[slot], columns.completion_index[slot], position);
    return r;
}

}  // namespace tinyvllm
