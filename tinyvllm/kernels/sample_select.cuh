// Where an ordered list of up to 2^20 tokens is cut so that what comes before reaches a goal, without sorting them.
//
// A token's place in the order is one integer, 63 bits: a bucket (11), bits that grow as the value falls (32), the
// id (20). Digit by digit a histogram says in which bin the goal is reached. The bucket is a coarse, linear image of
// the value, so that the first histogram spreads real logits over many bins and few tokens share the last one;
// those, and all before them, are then listed in shared memory, and the row is not read again.
// What is summed up are integers (a count, or a mass in units of 2^-44): atomics may come in any order.
#pragma once

namespace tinyvllm {

constexpr int id_bits = 20, value_bits = 32, bucket_bits = 11, num_bins = 1 << bucket_bits;
constexpr int bucket_shift = id_bits + value_bits;
constexpr int num_levels = 6;  // digits of 11, 11, 11, 10, 10 and 10 bits
constexpr float buckets_per_unit = 64.0f;  // the last bucket begins 32 below the largest value
constexpr uint64_t everything = ~uint64_t(0);

/// The place of a token whose value lies `distance` (0 to inf) below the largest.
TINYVLLM_DEVICE uint64_t place_of(float distance, uint32_t falling_bits, uint32_t token_id) {
    const uint64_t bucket = uint32_t(fminf(distance * buckets_per_unit, float(num_bins - 1)));
    return bucket << bucket_shift | uint64_t(falling_bits) << id_bits | token_id;
}

TINYVLLM_DEVICE uint32_t falling_bits_of(uint64_t place) { return uint32_t(place >> id_bits); }
TINYVLLM_DEVICE uint32_t token_at(uint64_t place) { return uint32_t(place) & ((1u << id_bits) - 1); }

/// A weight in (0, 1] in units of 2^-44, rounded to nearest: sums of 2^20 of them fit and are exact.
TINYVLLM_DEVICE uint64_t mass_of(float weight) { return uint64_t(weight * 0x1p44f + 0.5f); }

/// Shared memory of one selection.
struct Selection {
    uint64_t histogram[num_bins];
    uint64_t list[LIST_SIZE];
    uint64_t warp_sums[32];
    uint64_t before;  // what comes before the chosen bin
    uint32_t digit, num_matching, num_listed;
};

/// The tokens of a row that are not cut yet. `Row::place(id, logit, place)` is false for tokens that are out already.
template <class Row>
struct Candidates {
    const Row& row;
    int vocab_size;
    const Selection& selection;
    uint64_t last;   // the last place that is in
    bool is_listed;  // whether all of them are in the selection's list

    /// Calls `visit(place)` for this thread's share.
    template <class Visit>
    TINYVLLM_DEVICE void each(Visit visit) const {
        if (is_listed) {
            for (int i = threadIdx.x; i < int(selection.num_listed); i += int(blockDim.x))
                if (selection.list[i] <= last) visit(selection.list[i]);
        } else {
            each_logit(row.logits, vocab_size, [&](int id, float x) {
                uint64_t place = 0;
                if (row.place(id, x, place) && place <= last) visit(place);
            });
        }
    }
};

/// Finds the bin with `goal` in it and writes it, and what comes before it, to `s`; returns the sum of all bins.
template <class GoalOf>
TINYVLLM_DEVICE uint64_t find_bin(Selection& s, uint64_t before, GoalOf goal_of) {
    const int per_thread = num_bins / int(blockDim.x), num_warps = int(blockDim.x) / warp_size;
    const uint64_t* bins = s.histogram + int(threadIdx.x) * per_thread;
    uint64_t mine = 0;
    for (int i = 0; i < per_thread; ++i) mine += bins[i];
    const uint64_t up_to_mine = warp_scan(mine);
    if (lane_id() == warp_size - 1) s.warp_sums[warp_id()] = up_to_mine;
    __syncthreads();  // the sums of all warps are there before anybody adds them up
    uint64_t at = before + up_to_mine - mine, total = 0;
    for (int warp = 0; warp < num_warps; ++warp) {
        if (warp < warp_id()) at += s.warp_sums[warp];
        total += s.warp_sums[warp];
    }
    const uint64_t goal = goal_of(total);
    for (int i = 0; i < per_thread; ++i) {
        if (at < goal && goal <= at + bins[i]) {  // true in one bin of one thread
            s.digit = int(threadIdx.x) * per_thread + i;
            s.before = at;
        }
        at += bins[i];
    }
    __syncthreads();  // the bin is chosen before anybody uses it, and read before anybody clears the histogram
    return total;
}

/// Cuts `from` behind the first token up to which `measure(place)` adds up to the goal; `goal_of(total)` is at least
/// 1. Cuts nothing if the goal is more than there is. Every thread calls it.
template <class Row, class Measure, class GoalOf>
TINYVLLM_DEVICE void cut_at_goal(Candidates<Row>& from, Selection& s, Measure measure, GoalOf goal_of) {
    uint64_t prefix = 0, before = 0, goal = 0;
    for (int level = 0; level < num_levels; ++level) {
        const int width = level < 3 ? 11 : 10, shift = level < 3 ? 52 - 11 * level : 50 - 10 * level;
        const int above = shift + width;
        for (int i = threadIdx.x; i < num_bins; i += int(blockDim.x)) s.histogram[i] = 0;
        if (threadIdx.x == 0) s.num_matching = 0;
        __syncthreads();  // the histogram is empty before anybody counts
        uint32_t num_mine = 0;
        from.each([&](uint64_t place) {
            if (place >> above != prefix) return;
            ++num_mine;
            atomicAdd(&s.histogram[place >> shift & ((1u << width) - 1)], measure(place));
        });
        if (num_mine > 0) atomicAdd(&s.num_matching, num_mine);
        __syncthreads();  // everybody has counted before the bins are added up
        const bool is_single = s.num_matching == 1;
        if (level == 0) {
            const uint64_t total = find_bin(s, before, goal_of);
            goal = goal_of(total);
            if (goal > total) return;
        } else {
            find_bin(s, before, [goal](uint64_t) { return goal; });
        }
        prefix = prefix << width | s.digit;
        before = s.before;
        if (level == 0 && !from.is_listed) {
            if (threadIdx.x == 0) s.num_listed = 0;
            __syncthreads();  // the list is empty before anybody appends
            from.each([&](uint64_t place) {
                if (place >> shift > prefix) return;
                const uint32_t at = atomicAdd(&s.num_listed, 1u);
                if (at < LIST_SIZE) s.list[at] = place;
            });
            __syncthreads();  // the list is complete before anybody reads it
            from.is_listed = s.num_listed <= LIST_SIZE;
        }
        from.last = min(from.last, ((prefix + 1) << shift) - 1);  // an earlier cut may lie within the bin
        if (is_single) return;
    }
}

}  // namespace tinyvllm
