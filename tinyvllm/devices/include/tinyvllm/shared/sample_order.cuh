// The one order of tokens, larger value first and equal values by lower id, as integers that compare with one
// instruction; and reductions of such integers over a block. Integer reductions have no order to fix.
#pragma once

namespace tinyvllm {

/// Bits that grow with `x`; -0 and 0 get the same ones.
TINYVLLM_DEVICE uint32_t growing_bits(float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);  // adding 0 makes 0 of -0
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The inverse of `growing_bits`.
TINYVLLM_DEVICE float float_of_growing(uint32_t bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

/// A token's standing in a race: larger is better, equal scores by lower id. 0 stands below every token.
TINYVLLM_DEVICE uint64_t standing(float score, uint32_t token_id) {
    return uint64_t(growing_bits(score)) << 32 | ~token_id;
}

TINYVLLM_DEVICE uint32_t token_of(uint64_t standing) { return ~uint32_t(standing); }
TINYVLLM_DEVICE float score_of(uint64_t standing) { return float_of_growing(uint32_t(standing >> 32)); }

/// `x`, and +inf for a NaN: both make a row corrupt, and a maximum passes on an infinity but drops a NaN.
TINYVLLM_DEVICE float nan_as_infinity(float x) { return x < INFINITY ? x : INFINITY; }

/// Whether a row's largest logit, NaN taken as +inf, leaves something to choose.
TINYVLLM_DEVICE bool is_sound(float row_max) { return row_max > -INFINITY && row_max < INFINITY; }

/// `join` of all threads' values, the same in every thread. Every thread calls it; whole warps. `scratch`: 32 words.
template <class Join>
TINYVLLM_DEVICE uint64_t block_join(uint64_t x, uint64_t* scratch, Join join) {
    const int num_warps = num_threads() / warp_size;
#pragma unroll
    for (int offset = warp_size / 2; offset > 0; offset /= 2) x = join(x, __shfl_xor_sync(full_warp, x, offset));
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();  // every warp's part is in scratch before anybody reads it
    x = scratch[0];
    for (int warp = 1; warp < num_warps; ++warp) x = join(x, scratch[warp]);
    __syncthreads();  // everybody has read scratch before the caller, or the next reduction, writes it
    return x;
}

TINYVLLM_DEVICE uint64_t block_best(uint64_t x, uint64_t* scratch) {
    return block_join(x, scratch, [](uint64_t a, uint64_t b) { return a < b ? b : a; });
}

TINYVLLM_DEVICE uint64_t block_total(uint64_t x, uint64_t* scratch) {
    return block_join(x, scratch, [](uint64_t a, uint64_t b) { return a + b; });
}

/// The least logit up to `most` for which `holds`, which it does from some logit on; +inf if it does for none. One warp
/// calls it.
template <class Holds>
TINYVLLM_DEVICE float least_logit(float most, Holds holds) {
    uint32_t below = growing_bits(-INFINITY), above = growing_bits(most);  // holds at neither, or at `above` only
    uint32_t lanes;
    do {
        const uint32_t step = (above - below + warp_size - 1) / warp_size;
        const uint32_t mine = min(below + uint32_t(lane_id() + 1) * step, above);
        lanes = __ballot_sync(full_warp, holds(float_of_growing(mine)));
        if (lanes == 0) return INFINITY;
        below += uint32_t(__ffs(int(lanes)) - 1) * step;
        above = min(below + step, above);
    } while (above - below > 1);
    return float_of_growing(above);
}

/// The logits of four neighbours, the first a multiple of four; -inf from `end` on, a multiple of four or the
/// vocabulary's.
TINYVLLM_DEVICE void load_four(float* x, const float* row, int first, int end, int vocab_size) {
    if (vocab_size % 4 == 0 && first < end) {  // then every row begins at a multiple of 16 bytes
        const uint4 bits = load16(row + first);
        x[0] = __uint_as_float(bits.x);
        x[1] = __uint_as_float(bits.y);
        x[2] = __uint_as_float(bits.z);
        x[3] = __uint_as_float(bits.w);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = first + i < end ? row[first + i] : -INFINITY;
    }
}

/// `four[i]` where it is not known which while compiling: registers have no index.
TINYVLLM_DEVICE float one_of(const float (&four)[4], int i) {
    return i < 2 ? (i == 0 ? four[0] : four[1]) : (i == 2 ? four[2] : four[3]);
}

/// This thread's logits of the tokens [first, end): groups of four neighbours, group g being the
/// (g * blockDim + threadIdx)-th.
template <int count>
TINYVLLM_DEVICE void load_logits(float (&x)[count], const float* row, int first, int end, int vocab_size) {
#pragma unroll
    for (int group = 0; group < count / 4; ++group)
        load_four(x + group * 4, row, first + (group * int(blockDim.x) + int(threadIdx.x)) * 4, end, vocab_size);
}

/// The token of element `i` of `load_logits`.
TINYVLLM_DEVICE int loaded_token(int first, int i) {
    return first + (i / 4 * int(blockDim.x) + int(threadIdx.x)) * 4 + i % 4;
}

/// Calls `visit(id, logit)` for this thread's share of a whole row, a NaN being +inf; eight logits are under way before
/// the first visit.
template <class Visit>
TINYVLLM_DEVICE void each_logit(const float* row, int vocab_size, Visit visit) {
    for (int first = 0; first < vocab_size; first += 8 * int(blockDim.x)) {
        float x[8];
        load_logits(x, row, first, vocab_size, vocab_size);
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (loaded_token(first, i) < vocab_size) visit(loaded_token(first, i), nan_as_infinity(x[i]));
    }
}

/// `each_logit` for visits that are large and rare: there is one piece of code for all, and few registers are taken.
template <class Visit>
TINYVLLM_DEVICE void each_logit_slowly(const float* row, int vocab_size, Visit visit) {
    for (int first = int(threadIdx.x) * 4; first < vocab_size; first += 4 * int(blockDim.x)) {
        float x[4];
        load_four(x, row, first, vocab_size, vocab_size);
#pragma unroll 1
        for (int i = 0; i < min(4, vocab_size - first); ++i) visit(first + i, nan_as_infinity(one_of(x, i)));
    }
}

}  // namespace tinyvllm
