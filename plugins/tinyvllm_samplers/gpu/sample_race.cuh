// The race of z + Gumbel noise among the tokens of a tile, and what its block leaves for the last block of the row.
//
// Only the last race, relative to the row's maximum, chooses: what comes before leaves out what cannot win it, with room
// for every rounding. Scores and ids are compared as integers, so that no order can matter. `Enters` says of a logit
// whether its token takes part; those that do include the row's most likely one, if any do.
#pragma once

namespace tinyvllm {

constexpr int shortlist_size = 128, record_tokens = 7;

/// A token that may win.
struct Candidate {
    uint32_t token;
    float logit;
};

/// What a tile's block leaves for the row's last block.
struct alignas(16) Record {
    float largest;            // of the tile's logits; +inf where one is NaN
    uint32_t num_candidates;  // that may win the row's race; more than fit: any token may
    Candidate candidates[record_tokens];
};

/// What a block knows of its tile's race.
struct Shortlist {
    uint32_t best;  // some token scores so much, in growing bits
    uint32_t size, num_left;
    Candidate candidates[shortlist_size];  // that are not ruled out yet
    float scores[shortlist_size];
};

/// What a score must reach where some token scores `best`, in the tile's race, or else it is below that token's in the
/// row's race too. Here z is x / temperature, there (x - max x) / temperature, with the same g. The shift is the same
/// for all tokens, and z rounds by a few 2^-24 of |z|; there too, where |z| < 26 in all tokens that may win.
TINYVLLM_DEVICE float limit_of(float best) { return best - (1e-3f + fabsf(best) * 0x1p-20f); }

/// A tile's race: tokens that cannot win the row's are left out, group by group and without logarithms where possible.
/// Comparisons are such that NaN, as from an infinite z, leaves nothing out.
template <class Enters>
struct Race {
    const SamplingRow& row;
    const Tile& tile;
    Shortlist& list;
    const Enters& enters;
    float per_temperature;
    float largest;          // of the thread's logits
    bool is_finite;         // they are, but for -inf
    float of_group[LOADS];  // the largest of each group of a step

    /// Takes the logits of a step, -inf in place of those that do not enter.
    TINYVLLM_DEVICE void take(int at, const float (&x)[step_tokens]) {
#pragma unroll
        for (int group = 0; group < LOADS; ++group) {
            const float* four = x + group * 4;
            of_group[group] = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]));
            largest = fmaxf(largest, of_group[group]);
#pragma unroll
            for (int i = 0; i < 4; ++i) is_finite &= four[i] < INFINITY;
        }
        if (at != tile.first) return;
        // What must be reached at first: bounds of a group's scores cost less than the scores.
        const uint4 words = row.random.words(loaded_token(at, 0) / 4);
        float best = -INFINITY;
#pragma unroll
        for (int i = 0; i < 4; ++i) best = fmaxf(best, x[i] * per_temperature + gumbel_at_least(word_of(words, i)));
        raise(best);
    }

    /// Lists what the step has. All threads call it.
    TINYVLLM_DEVICE void judge(int at) {
        const float limit = limit_of(float_of_growing(load_relaxed(&list.best)));
        const uint32_t groups = hopeful(at, limit);
        if (__any_sync(full_warp, groups != 0)) raise(listed(at, groups, limit));
    }

    /// Which groups of the step may have a winner, a bit each.
    TINYVLLM_DEVICE uint32_t hopeful(int at, float limit) const {
        uint32_t groups = 0;
        float z[LOADS];
        uint4 words[LOADS];
        bool has_hope = false;
#pragma unroll
        for (int group = 0; group < LOADS; ++group) {
            z[group] = of_group[group] * per_temperature;
            has_hope |= !(z[group] + gumbel_max < limit);
            words[group] = row.random.counter(loaded_token(at, group * 4) / 4);
        }
        if (!has_hope || largest == -INFINITY) return 0;
        philox4x32(words, row.random.key);
#pragma unroll
        for (int group = 0; group < LOADS; ++group) {
            const uint4 four = words[group];
            const uint32_t lowest = min(min(four.x, four.y), min(four.z, four.w));
            if (!(z[group] + gumbel_at_most(lowest) < limit)) groups |= 1u << group;
        }
        return groups;
    }

    /// Lists the tokens of these groups that may win; the best score among them.
    TINYVLLM_DEVICE float listed(int at, uint32_t groups, float limit) {
        float best = -INFINITY;
        for (; groups != 0; groups &= groups - 1) {
            const int first = loaded_token(at, 4 * (__ffs(int(groups)) - 1));
            float x[4];
            load_four(x, tile.row, first, tile.end, tile.vocab_size);
            const uint4 words = row.random.words(first / 4);
            uint32_t tokens = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool is_out = x[i] * per_temperature + gumbel_at_most(word_of(words, i)) < limit;
                tokens |= (x[i] > -INFINITY && !is_out) << i;
            }
            for (; tokens != 0; tokens &= tokens - 1) {
                const int i = __ffs(int(tokens)) - 1;
                const float logit = one_of(x, i);
                const float score = logit * per_temperature + gumbel_of(word_of(words, i));
                if (score < limit || !enters(logit)) continue;
                best = fmaxf(best, score);
                const uint32_t place = atomicAdd(&list.size, 1u);
                if (place >= shortlist_size) continue;
                list.candidates[place] = {uint32_t(first + i), logit};
                list.scores[place] = score;
            }
        }
        return best;
    }

    /// Tells the block that some token of the warp scores so much. All threads call it.
    TINYVLLM_DEVICE void raise(float best) {
        best = warp_max(best);
        if (lane_id() == 0) atomicMax(&list.best, growing_bits(best));
    }
};

template <class Enters>
TINYVLLM_DEVICE Race<Enters> race_of(const SamplingRow& row, const Tile& tile, Shortlist& list, const Enters& enters) {
    return {row, tile, list, enters, 1.0f / row.temperature, -INFINITY, true};
}

/// Leaves in `record` what of the list may still win. All threads call it, after a barrier.
TINYVLLM_DEVICE void leave(Record& record, Shortlist& list) {
    const float limit = limit_of(float_of_growing(list.best));
    const uint32_t size = list.size;
    for (uint32_t i = threadIdx.x; i < min(size, uint32_t(shortlist_size)); i += THREADS) {
        if (list.scores[i] < limit) continue;
        const uint32_t place = atomicAdd(&list.num_left, 1u);
        if (place < record_tokens) record.candidates[place] = list.candidates[i];
    }
    __syncthreads();  // the record's candidates are written, and counted, before their number is
    if (threadIdx.x == 0) record.num_candidates = size > shortlist_size ? record_tokens + 1 : list.num_left;
}

/// Whether the records name all tokens that may win. All threads call it.
TINYVLLM_DEVICE bool name_all(const Record* records, int num_tiles) {
    bool mine = true;
    for (int i = threadIdx.x; i < num_tiles; i += THREADS) mine &= records[i].num_candidates <= record_tokens;
    return __syncthreads_and(mine);  // of all tiles
}

/// The best of the thread's share of the tiles' candidates, or, unless these are all, of the row's tokens.
template <class Enters>
TINYVLLM_DEVICE uint64_t last_race(const SamplingRow& row, const Record* records, int num_tiles, float row_max,
                                   bool is_listed, int vocab_size, const Enters& enters) {
    uint64_t best = 0;
    const auto enter = [&](uint32_t token, float x) {
        if (x == -INFINITY || !enters(x)) return;
        const uint64_t mine = standing(row.score(row.scaled(x, row_max), token), token);
        best = best < mine ? mine : best;
    };
    if (!is_listed) {
        each_logit_slowly(row.logits, vocab_size, [&](int token, float x) { enter(token, x); });
        return best;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < num_tiles; i += THREADS)
#pragma unroll 1
        for (uint32_t j = 0; j < records[i].num_candidates; ++j)
            enter(records[i].candidates[j].token, records[i].candidates[j].logit);
    return best;
}

}  // namespace tinyvllm
