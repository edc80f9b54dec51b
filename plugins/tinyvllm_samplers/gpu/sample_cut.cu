// Finds the rows whose token min_p, top_k or top_p would have cut, and draws these anew from what is kept.
//   Formula    w = exp(z); min_p keeps w >= min_p, top_k the first k in order, top_p those before which the mass is
//              below top_p of what is left; token[b] = argmax over the kept v of z + g, as in sample.cu
//   Reference  tinyvllm/reference/sampling.py
//   Shapes     token_ids, slots, positions [B] int32, row_max [B], logits [B, V], adjusted [R, V] float32, columns [S];
//              workspace plans [B], sums [B, 2, num_bins] uint64, zero, places [B, LIST_SIZE] uint64, records and
//              counters as in sample.cu; V <= 2^20
//   Mapping    weigh_rows and race_kept: a block owns a tile of a row and walks over it; the last block of a row to weigh
//              plans its cuts. draw_kept: a block owns a row
//   Numerics   z float32 with the reference's bits, w float32; masses add up as integers in units of 2^-44, exact up
//              to that rounding, so that the cut depends on no order; the goal is computed in float64
//   Traffic    weigh_rows 4 V bytes a row that top_k or top_p cuts, bandwidth or the instructions of the sums; race_kept
//              4 V bytes a row whose token does not stay; draw_kept what shares a bucket with a cut, or, where that is
//              more than LIST_SIZE, 4 V bytes a pass, a few times
#include "tinyvllm/prelude.cuh"
#include "philox.cuh"
#include "tinyvllm/shared/sample_order.cuh"
#include "sample_row.cuh"
#include "sample_select.cuh"
#include "tinyvllm/shared/sample_tile.cuh"

#include "sample_race.cuh"  // the last: it uses most of them

/// A row's tokens by z. As z <= 0, the bits of -z grow as z falls, and have no sign.
struct ScaledRow {
    const SamplingRow& row;
    const float* logits;
    float row_max;

    TINYVLLM_DEVICE static float z_at(uint64_t place) { return 0.0f - __uint_as_float(falling_bits_of(place)); }
    TINYVLLM_DEVICE static uint64_t mass_at(uint64_t place) { return mass_of(expf(z_at(place))); }

    /// -z; false for tokens that cannot be chosen, or that min_p cuts.
    TINYVLLM_DEVICE bool distance_of(float x, float& distance) const {
        distance = fabsf(row.scaled(x, row_max));
        return distance < INFINITY && !(row.min_p > 0.0f && expf(-distance) < row.min_p);
    }

    /// That of the logit, hardly rounded: temperature moves no token from bucket to bucket.
    TINYVLLM_DEVICE int bucket(float distance) const { return bucket_of(distance * row.temperature); }

    TINYVLLM_DEVICE uint64_t place(float distance, int id) const {
        return place_of(bucket(distance), __float_as_uint(distance), id);
    }

    TINYVLLM_DEVICE bool place(int id, float x, uint64_t& at) const {
        float distance;
        if (!distance_of(x, distance)) return false;
        at = place(distance, id);
        return true;
    }
};

/// What the sums of a row's buckets say about its cuts.
struct CutPlan {
    uint64_t mass_before, mass_after;  // of the buckets before `first`; after `last`, 0 where top_k cuts them
    uint32_t count_before;
    int first, last;      // the buckets in which some tokens may be kept and some not; all before stay, all after go
    bool is_open;         // whether the row must be drawn anew
    uint32_t num_listed;  // tokens of `first` to `last`
};

/// The least integer mass that is not below top_p of the total: a token is kept if the mass before it is below.
TINYVLLM_DEVICE uint64_t mass_goal(float top_p, uint64_t total) {
    const double goal = double(top_p) * double(total);
    const uint64_t whole = uint64_t(goal);
    return max(whole + (double(whole) < goal), uint64_t(1));  // the first token stays, whatever top_p is
}

/// The sums of the bins [0, end) of a row. Every thread calls it.
TINYVLLM_DEVICE uint64_t sum_before(int end, const uint64_t* sums, uint64_t* scratch) {
    uint64_t mine = 0;
    for (int i = threadIdx.x; i < end; i += THREADS) mine += sums[i];
    return block_total(mine, scratch);
}

/// Copies a row's sums to shared memory. Every thread calls it.
TINYVLLM_DEVICE void gather(Histogram& histogram, const uint64_t* sums) {
    for (int i = threadIdx.x; i < num_bins; i += THREADS) {
        histogram.low[i] = uint32_t(sums[i]);
        histogram.high[i] = uint32_t(sums[i] >> 32);
    }
    __syncthreads();  // the copy is complete before anybody looks for a bin
}

/// The plan of a row that top_k or top_p cuts, but for `is_open`. Every thread calls it.
TINYVLLM_DEVICE CutPlan plan_of(const SamplingRow& row, Selection& s, const uint64_t* masses, const uint64_t* counts) {
    CutPlan plan = {0, 0, 0, num_bins, num_bins - 1, false, 0};
    bool is_limited = false;  // by top_k
    if (row.top_k > 0) {
        const uint64_t k = uint64_t(row.top_k);
        gather(s.histogram, counts);
        is_limited = find_bin(s, 0, [k](uint64_t) { return k; }) >= k;
        if (is_limited) plan.first = plan.last = int(s.digit);
    }
    if (row.top_p < 1.0f) {
        // Of the k first tokens' mass so much is sure; less than that is not to be reached.
        const uint64_t sure = is_limited ? sum_before(plan.last, masses, s.warp_sums) : 0;
        gather(s.histogram, masses);
        const uint64_t total = find_bin(
            s, 0, [&](uint64_t all) { return mass_goal(row.top_p, is_limited ? sure : all); });
        plan.first = int(s.digit);
        plan.mass_before = s.before;
        if (!is_limited) {
            plan.last = plan.first;
            plan.mass_after = total - s.before - s.histogram.sum(plan.first);
        }
    }
    if (row.top_k > 0) plan.count_before = uint32_t(sum_before(plan.first, counts, s.warp_sums));
    return plan;
}

/// Sums up masses and counts by bucket, and finds out whether the token that sample.cu has drawn stays.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    weigh_rows(CutPlan* plans, uint64_t* sums, uint32_t* counters, const int* token_ids, const float* row_max,
               const float* logits, const float* adjusted, const int* slots, const int* positions,
               const float* temperature, const float* top_p, const float* min_p, const int* top_k,
               const uint64_t* seed, const int* completion_index, const int* rule_row, int vocab_size, int tile_size) {
    __shared__ Selection selection;  // masses: the tile's, then the row's
    __shared__ uint32_t counts[num_bins];
    __shared__ bool is_last;
    pdl_launch_dependents();
    selection.histogram.clear();
    for (int i = threadIdx.x; i < num_bins; i += THREADS) counts[i] = 0;
    pdl_wait();  // row_max and the tokens are the predecessor's
    const int b = blockIdx.y, slot = slots[b], num_tiles = gridDim.x;
    if (slot < 0) return;
    const SamplingColumns columns = {temperature, top_p, min_p, top_k, seed, completion_index, rule_row};
    const SamplingRow row = read_row(columns, logits, adjusted, b, slot, positions[b], vocab_size);
    if (!row.is_cut() || !is_sound(row_max[b])) {
        if (blockIdx.x == 0 && threadIdx.x == 0) plans[b].is_open = false;
        return;
    }
    const ScaledRow scaled = {row, row.logits, row_max[b]};
    const bool has_mass = row.top_p < 1.0f, has_count = row.top_k > 0;
    float lowest = -INFINITY;
    if (row.min_p > 0.0f)  // every warp for itself
        lowest = least_logit(scaled.row_max, [&](float x) { float d; return scaled.distance_of(x, d); });
    uint64_t* row_masses = sums + size_t(b) * (2 * num_bins);
    uint64_t* row_counts = row_masses + num_bins;
    if (has_mass || has_count) {
        const Tile tile = tile_of_block(row.logits, tile_size, vocab_size);
        const float divisor = row.temperature, reciprocal = 1.0f / divisor;
        const bool is_usual = divisor > 0x1p-20f && divisor < 0x1p20f;
        float distances[step_tokens];
        const auto take = [&](int, const float(&x)[step_tokens]) {
            // From a rounded reciprocal, one step of Newton's gives the bits of the division (Markstein 1990) where nothing
            // overflows or loses bits to denormals; distances so large or so small are all alike here.
#pragma unroll
            for (int i = 0; i < step_tokens; ++i) {
                const float from_largest = x[i] - scaled.row_max, near = from_largest * reciprocal;
                distances[i] = fabsf(fmaf(fmaf(-near, divisor, from_largest), reciprocal, near));
            }
            if (is_usual && !(row.min_p > 0.0f)) return;
#pragma unroll
            for (int i = 0; i < step_tokens; ++i) {
                if (!is_usual) distances[i] = fabsf(row.scaled(x[i], scaled.row_max));
                if (!(x[i] >= lowest)) distances[i] = INFINITY;
            }
        };
        const auto weigh = [&](int) {
            if (has_mass)
#pragma unroll
                for (int i = 0; i < step_tokens; ++i)
                    if (distances[i] < 32.0f)  // others have none
                        selection.histogram.add(scaled.bucket(distances[i]), mass_of(expf(-distances[i])));
            if (has_count)
#pragma unroll
                for (int i = 0; i < step_tokens; ++i)
                    if (distances[i] < INFINITY) atomicAdd(&counts[scaled.bucket(distances[i])], 1u);
        };
        __syncthreads();  // the sums are zero before anybody adds to them
        each_step(tile, take, weigh);
        __syncthreads();  // everybody has counted before the bins are added up
        for (int i = threadIdx.x; i < num_bins; i += THREADS) {
            const uint64_t mass = selection.histogram.sum(i);
            if (mass > 0) atomicAdd(&row_masses[i], mass);
            if (counts[i] > 0) atomicAdd(&row_counts[i], uint64_t(counts[i]));
        }
        __syncthreads();  // the block's sums are added before thread 0 says so
        if (threadIdx.x == 0) is_last = is_last_arrival(counters + b, num_tiles);
        __syncthreads();  // all threads know whether theirs is the last block, and it sees what the others added
        if (!is_last) return;
    } else if (blockIdx.x > 0) {
        return;
    }
    CutPlan plan = plan_of(row, selection, row_masses, row_counts);
    if (threadIdx.x == 0) {
        float distance;
        plan.is_open = true;
        if (scaled.distance_of(row.logits[token_ids[b]], distance)) {
            const int bucket = scaled.bucket(distance), first = plan.first;
            // With all that its bucket has, it is the first there; and the first of the bucket of the cut stays.
            const uint64_t its_own = has_mass ? mass_of(expf(-distance)) : 1;
            const bool is_first = first == plan.last && selection.histogram.sum(bucket) == its_own;
            plan.is_open = bucket > first || (bucket == first && !is_first);
        }
        plans[b] = plan;
    }
    // The next launch finds zeros; everybody has read the sums, as the last thing that all do with them ends with a barrier.
    for (int i = threadIdx.x + (has_mass ? 0 : num_bins); i < (has_count ? 2 : 1) * num_bins; i += THREADS)
        row_masses[i] = 0;
}

/// Lists what may be kept of the rows whose token does not stay, and lets what surely is race as in sample.cu.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    race_kept(CutPlan* plans, uint64_t* places, Record* records, const float* row_max, const float* logits,
              const float* adjusted, const int* slots, const int* positions, const float* temperature,
              const float* top_p, const float* min_p, const int* top_k, const uint64_t* seed,
              const int* completion_index, const int* rule_row, int vocab_size, int tile_size) {
    __shared__ Shortlist list;
    __shared__ float limits[2];
    pdl_launch_dependents();
    if (threadIdx.x == 0) list.best = list.size = list.num_left = 0;
    pdl_wait();  // the plans are the predecessor's
    const int b = blockIdx.y, slot = slots[b];
    CutPlan& plan = plans[b];
    if (slot < 0 || !plan.is_open) return;
    const SamplingColumns columns = {temperature, top_p, min_p, top_k, seed, completion_index, rule_row};
    const SamplingRow row = read_row(columns, logits, adjusted, b, slot, positions[b], vocab_size);
    const ScaledRow scaled = {row, row.logits, row_max[b]};
    if (warp_id() < 2) {
        const int end = warp_id() == 0 ? plan.first : plan.last + 1;
        const float least = least_logit(scaled.row_max, [&](float x) {
            float distance;
            return scaled.distance_of(x, distance) && scaled.bucket(distance) < end;
        });
        if (lane_id() == 0) limits[warp_id()] = least;
    }
    __syncthreads();  // the limits are there, and the list is empty, before anybody judges a token
    const float stays_from = limits[0], listed_from = limits[1];
    places += size_t(b) * LIST_SIZE;
    const auto stays = [&](float x) { return x >= stays_from; };
    const Tile tile = tile_of_block(row.logits, tile_size, vocab_size);
    auto race = race_of(row, tile, list, stays);
    const auto take = [&](int at, float(&x)[step_tokens]) {
        uint32_t listed = 0;
#pragma unroll
        for (int i = 0; i < step_tokens; ++i) {
            if (stays(x[i])) continue;
            listed |= (x[i] >= listed_from) << i;
            x[i] = -INFINITY;
        }
        for (; listed != 0; listed &= listed - 1) {
            const int token = loaded_token(at, __ffs(int(listed)) - 1);
            const uint32_t place = atomicAdd(&plan.num_listed, 1u);
            if (place < LIST_SIZE) scaled.place(token, row.logits[token], places[place]);
        }
        race.take(at, x);
    };
    each_step(tile, take, [&](int at) { race.judge(at); });
    __syncthreads();  // the list is complete before it is left to the successor
    leave(records[size_t(b) * gridDim.x + blockIdx.x], list);
}

/// Cuts what is listed, and runs the last race.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draw_kept(int* token_ids, const CutPlan* plans, uint64_t* places, const Record* records, const float* row_max,
              const float* logits, const float* adjusted, const int* slots, const int* positions,
              const float* temperature, const float* top_p, const float* min_p, const int* top_k, const uint64_t* seed,
              const int* completion_index, const int* rule_row, int vocab_size, int num_tiles) {
    __shared__ Selection selection;
    pdl_launch_dependents();
    pdl_wait();  // places and records are the predecessor's
    const int b = blockIdx.x, slot = slots[b];
    const CutPlan& plan = plans[b];
    if (slot < 0 || !plan.is_open) return;
    const SamplingColumns columns = {temperature, top_p, min_p, top_k, seed, completion_index, rule_row};
    const SamplingRow row = read_row(columns, logits, adjusted, b, slot, positions[b], vocab_size);
    const ScaledRow scaled = {row, row.logits, row_max[b]};
    const bool is_listed = plan.num_listed <= LIST_SIZE;
    Candidates<ScaledRow> kept = {
        scaled, vocab_size, places + size_t(b) * LIST_SIZE, everything, int(plan.num_listed), is_listed};
    uint64_t best = 0, best_listed = 0;  // of the tokens that surely stay, and of the others
    if (is_listed) {
        records += size_t(b) * num_tiles;
        const auto stays = [&](float x) {
            float distance;
            return scaled.distance_of(x, distance) && scaled.bucket(distance) < plan.first;
        };
        const bool is_all = name_all(records, num_tiles);
        best = block_best(last_race(row, records, num_tiles, scaled.row_max, is_all, vocab_size, stays),
                          selection.warp_sums);
    }
    const uint64_t count_before = is_listed ? plan.count_before : 0;
    const uint64_t mass_before = is_listed ? plan.mass_before : 0, mass_after = is_listed ? plan.mass_after : 0;
#pragma unroll 1
    for (int num_cuts = 0; num_cuts <= 2; ++num_cuts) {
        const bool is_mass = num_cuts == 2;
        if (num_cuts == 1 ? row.top_k > 0 : is_mass && row.top_p < 1.0f)
            cut_at_goal(kept, selection, is_mass ? mass_before : count_before,
                        [&](uint64_t place) { return is_mass ? ScaledRow::mass_at(place) : 1; },
                        [&](uint64_t total) {
                            return is_mass ? mass_goal(row.top_p, mass_before + total + mass_after) : row.top_k;
                        });
        if (!kept.is_listed && num_cuts < 2) continue;
        best_listed = 0;
        kept.each([&](uint64_t place) {
            const uint32_t token = token_at(place);
            best_listed = max(best_listed, standing(row.score(ScaledRow::z_at(place), token), token));
        });
        best_listed = block_best(best_listed, selection.warp_sums);
        if (best_listed < best) break;  // it does not matter which of them the other cuts leave
    }
    if (threadIdx.x == 0) token_ids[b] = int(token_of(max(best, best_listed)));
}
