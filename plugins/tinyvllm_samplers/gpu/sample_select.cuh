// Where an ordered list of up to 2^20 tokens is cut so that what comes before reaches a goal, without sorting them.
//
// A token's place in the order is one integer, 63 bits: a bucket (11), bits that grow as the value falls (32), the
// id (20). Digit by digit a histogram says in which bin the goal is reached. The bucket is the logarithm of the
// distance from the largest value, so that the first histogram spreads logits of any spread over many bins and few
// tokens share the last one; those, and all before them, are then listed, and the row is not read again.
// What is summed up are integers (a count, or a mass in units of 2^-44): atomics may come in any order.
#pragma once

namespace tinyvllm {

constexpr int id_bits = 20, value_bits = 32, bucket_bits = 11, num_bins = 1 << bucket_bits;
constexpr int bucket_shift = id_bits + value_bits, place_bits = bucket_bits + bucket_shift;
constexpr uint64_t everything = ~uint64_t(0);

/// 128 buckets an octave of the distance (at least 0) from the largest value, from 2^-10 to 2^6.
TINYVLLM_DEVICE int bucket_of(float distance) {
    constexpr uint32_t first = (127 - 10) << 7;  // exponent and seven bits of the significand
    return int((__float_as_uint(fminf(fmaxf(distance, 0x1p-10f), 0x1.fffffep5f)) >> 16) - first);
}

/// The place of a token. Where falling bits are equal so are buckets, and where they grow buckets do not fall.
TINYVLLM_DEVICE uint64_t place_of(int bucket, uint32_t falling_bits, uint32_t token_id) {
    return uint64_t(bucket) << bucket_shift | uint64_t(falling_bits) << id_bits | token_id;
}

TINYVLLM_DEVICE uint32_t falling_bits_of(uint64_t place) { return uint32_t(place >> id_bits); }
TINYVLLM_DEVICE uint32_t token_at(uint64_t place) { return uint32_t(place) & ((1u << id_bits) - 1); }

/// A weight in (0, 1] in units of 2^-44, rounded to nearest: sums of 2^20 of them fit and are exact.
TINYVLLM_DEVICE uint64_t mass_of(float weight) { return uint64_t(weight * 0x1p44f + 0.5f); }

/// Sums of 64 bits in shared memory, of which hardware adds 32 at a time: a carry goes to the upper half as it occurs.
struct Histogram {
    uint32_t low[num_bins], high[num_bins];

    TINYVLLM_DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < num_bins; i += THREADS) low[i + threadIdx.x] = high[i + threadIdx.x] = 0;
    }

    TINYVLLM_DEVICE void add(int bin, uint64_t amount) {
        const uint32_t lower = uint32_t(amount), before = atomicAdd(&low[bin], lower);
        const uint32_t upper = uint32_t(amount >> 32) + (before + lower < lower);
        if (upper != 0) atomicAdd(&high[bin], upper);
    }

    TINYVLLM_DEVICE uint64_t sum(int bin) const { return uint64_t(high[bin]) << 32 | low[bin]; }
};

/// A place, and what it adds to the sum.
struct Measured {
    uint64_t place, amount;
};

/// Shared memory of one selection.
struct Selection {
    Histogram histogram;
    Measured few[THREADS];
    uint64_t warp_sums[32];
    uint64_t before;  // what comes before the chosen bin
    uint64_t chosen;  // place
    uint32_t digit, num_matching, num_listed;
};

/// The tokens of a row that are not cut yet. `Row::place(id, logit, place)` is false for tokens that are out already.
template <class Row>
struct Candidates {
    const Row& row;
    int vocab_size;
    uint64_t* list;  // [LIST_SIZE], shared or the block's own
    uint64_t last;   // the last place that is in
    int num_listed;
    bool is_listed;  // whether all of them are in the list

    /// Calls `visit(place)` for this thread's share.
    template <class Visit>
    TINYVLLM_DEVICE void each(Visit visit) const {
        if (is_listed) {
#pragma unroll 1
            for (int i = threadIdx.x; i < num_listed; i += THREADS)
                if (list[i] <= last) visit(list[i]);
        } else {
            each_logit_slowly(row.logits, vocab_size, [&](int id, float x) {
                uint64_t place = 0;
                if (row.place(id, x, place) && place <= last) visit(place);
            });
        }
    }
};

/// Finds the bin with `goal` in it and writes it, and what comes before it, to `s`; returns the sum of all bins.
template <class GoalOf>
TINYVLLM_DEVICE uint64_t find_bin(Selection& s, uint64_t before, GoalOf goal_of) {
    constexpr int num_warps = THREADS / warp_size, per_warp = num_bins / num_warps, per_lane = per_warp / warp_size;
    const int first_of_warp = warp_id() * per_warp;
    uint64_t of_warp = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) of_warp += s.histogram.sum(first_of_warp + i * warp_size + lane_id());
#pragma unroll
    for (int offset = warp_size / 2; offset > 0; offset /= 2) of_warp += __shfl_xor_sync(full_warp, of_warp, offset);
    if (lane_id() == 0) s.warp_sums[warp_id()] = of_warp;
    __syncthreads();  // the sums of all warps are there before anybody adds them up
    uint64_t at = before, total = 0;
#pragma unroll
    for (int warp = 0; warp < num_warps; ++warp) {
        if (warp < warp_id()) at += s.warp_sums[warp];
        total += s.warp_sums[warp];
    }
    const uint64_t goal = goal_of(total);
    if (at < goal && goal <= at + of_warp) {  // true in one warp, and below in one bin
        const int first = first_of_warp + lane_id() * per_lane;
        uint64_t mine = 0;
        for (int i = 0; i < per_lane; ++i) mine += s.histogram.sum(first + i);
        at += warp_scan(mine) - mine;
        for (int i = 0; i < per_lane; ++i) {
            const uint64_t sum = s.histogram.sum(first + i);
            if (at < goal && goal <= at + sum) {
                s.digit = first + i;
                s.before = at;
            }
            at += sum;
        }
    }
    __syncthreads();  // the bin is chosen before anybody uses it, and read before anybody clears the histogram
    return total;
}

/// `cut_at_goal` for at most as many listed tokens as threads: each adds up what comes before its own.
template <class Row, class Measure, class GoalOf>
TINYVLLM_DEVICE void cut_few_at_goal(Candidates<Row>& from, Selection& s, uint64_t before, Measure measure,
                                     GoalOf goal_of) {
    const uint64_t place = int(threadIdx.x) < from.num_listed ? from.list[threadIdx.x] : everything;
    const uint64_t amount = place <= from.last && place != everything ? measure(place) : 0;
    s.few[threadIdx.x] = {place, amount};
    const uint64_t total = block_total(amount, s.warp_sums), goal = goal_of(total);
    uint64_t at = before;
    for (int i = 0; i < from.num_listed && amount > 0; ++i)
        if (s.few[i].place < place) at += s.few[i].amount;
    if (at < goal && goal <= at + amount) s.chosen = place;
    __syncthreads();  // the place is chosen before anybody cuts there, and all have been read
    if (goal <= before + total) from.last = s.chosen;
}

/// Cuts `from` behind the first token up to which `before` and `measure(place)` add up to the goal; `goal_of(sum of
/// all measures)` is more than `before`. Cuts nothing if the goal is more than there is. Every thread calls it.
template <class Row, class Measure, class GoalOf>
TINYVLLM_DEVICE void cut_at_goal(Candidates<Row>& from, Selection& s, uint64_t before, Measure measure, GoalOf goal_of) {
    if (from.is_listed && from.num_listed <= THREADS) return cut_few_at_goal(from, s, before, measure, goal_of);
    uint64_t prefix = 0, goal = 0;
    int shift = place_bits;
#pragma unroll 1
    for (bool is_first = true; is_first || shift > 0; is_first = false) {
        const int above = shift;
        shift = max(above - bucket_bits, 0);
        s.histogram.clear();
        if (threadIdx.x == 0) s.num_matching = 0;
        __syncthreads();  // the histogram is empty before anybody counts
        uint32_t num_mine = 0;
        from.each([&](uint64_t place) {
            if (place >> above != prefix) return;
            ++num_mine;
            s.histogram.add(int(place >> shift & ((1u << (above - shift)) - 1)), measure(place));
        });
        if (num_mine > 0) atomicAdd(&s.num_matching, num_mine);
        __syncthreads();  // everybody has counted before the bins are added up
        const bool is_single = s.num_matching == 1;
        const uint64_t total = find_bin(s, before, [&](uint64_t sum) { return is_first ? goal_of(sum) : goal; });
        if (is_first) goal = goal_of(total);
        if (goal > before + total) return;  // at the first digit, if ever
        prefix = prefix << (above - shift) | s.digit;
        before = s.before;
        if (is_first && !from.is_listed) {
            if (threadIdx.x == 0) s.num_listed = 0;
            __syncthreads();  // the list is empty before anybody appends
            from.each([&](uint64_t place) {
                if (place >> shift > prefix) return;
                const uint32_t at = atomicAdd(&s.num_listed, 1u);
                if (at < LIST_SIZE) from.list[at] = place;
            });
            __syncthreads();  // the list is complete before anybody reads it
            from.is_listed = s.num_listed <= LIST_SIZE;
            from.num_listed = int(s.num_listed);
        }
        from.last = min(from.last, ((prefix + 1) << shift) - 1);  // an earlier cut may lie within the bin
        if (is_single) return;
    }
}

}  // namespace tinyvllm
