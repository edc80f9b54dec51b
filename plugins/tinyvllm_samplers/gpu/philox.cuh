// Random numbers that are a pure function of (seed, completion, position, token id), bit for bit those of
// tinyvllm/reference/philox.py. Nothing is drawn in sequence, so threads may take tokens in any order and skip any.
#pragma once

namespace tinyvllm {

/// Smallest and largest Gumbel number, one unit wider: a token further than their difference below another never wins.
constexpr float gumbel_min = -2.82f, gumbel_max = 22.89f;

/// The four random words of each of some counters under a key: Philox4x32-10 (Salmon et al., SC 2011). Counters that
/// go together share the ten keys.
template <int count>
TINYVLLM_DEVICE void philox4x32(uint4 (&counters)[count], uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
#pragma unroll
        for (uint4& counter : counters) {
            const uint32_t high_x = __umulhi(0xD2511F53u, counter.x), low_x = 0xD2511F53u * counter.x;
            const uint32_t high_z = __umulhi(0xCD9E8D57u, counter.z), low_z = 0xCD9E8D57u * counter.z;
            counter = make_uint4(high_z ^ counter.y ^ key.x, low_z, high_x ^ counter.w ^ key.y, low_x);
        }
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
}

/// Word `lane` of four.
TINYVLLM_DEVICE uint32_t word_of(uint4 four, uint32_t lane) {
    return lane < 2 ? (lane == 0 ? four.x : four.y) : (lane == 2 ? four.z : four.w);
}

/// The random numbers of one row of a step.
struct RandomStream {
    uint2 key;  // the seed's lower and upper half
    uint32_t position, completion_index;

    /// The counter of the four tokens 4 * group to 4 * group + 3.
    TINYVLLM_DEVICE uint4 counter(uint32_t group) const { return make_uint4(group, position, completion_index, 0); }

    /// Their words.
    TINYVLLM_DEVICE uint4 words(uint32_t group) const {
        uint4 four[1] = {counter(group)};
        philox4x32(four, key);
        return four[0];
    }

    /// The word of one token.
    TINYVLLM_DEVICE uint32_t word(uint32_t token_id) const {
        return word_of(words(token_id / 4), token_id % 4);
    }
};

TINYVLLM_DEVICE RandomStream make_random_stream(uint64_t seed, int completion_index, int position) {
    return RandomStream{make_uint2(uint32_t(seed), uint32_t(seed >> 32)), uint32_t(position),
                        uint32_t(completion_index)};
}

/// u in [2^-33, 1 - 2^-24]. The product is exact, so it may be fused with the sum; both conversions round to nearest.
TINYVLLM_DEVICE float uniform_of(uint32_t word) {
    return fminf(float(word) * 0x1p-32f + 0x1p-33f, 1.0f - 0x1p-24f);
}

/// g = -log(e), e = -log1p(-u); right to a few units in the last place, as the logarithms are.
TINYVLLM_DEVICE float gumbel_of(uint32_t word) { return -logf(-log1pf(-uniform_of(word))); }

/// What g is at most, closely unless u is near 1: e >= u, and u >= word / 2^32. Three instructions, not forty.
TINYVLLM_DEVICE float gumbel_at_most(uint32_t word) { return 22.18081f - __logf(float(word)); }  // 32 ln 2 and a bit

/// What g is at least, as closely: e <= u / (1 - u).
TINYVLLM_DEVICE float gumbel_at_least(uint32_t word) {
    const float u = uniform_of(word);
    return fmaxf(__logf(__fdividef(1.0f - u, u)) - 1e-4f, gumbel_min);
}

}  // namespace tinyvllm
