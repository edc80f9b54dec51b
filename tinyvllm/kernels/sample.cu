// One token a row, greedy or drawn, in one pass over the logits; the maxima of rows that sample_cut.cu finishes.
//   Formula    token[b] = argmax over v of z + g, lowest v of equals; z = (x - max x) / temperature, x the row's logits
//              after its rules, g Gumbel noise of (seed, completion, position, v); argmax of x at temperature 0
//   Reference  tinyvllm/reference/sampling.py, philox.py; plugins/tinyvllm_samplers/default.py for corrupt rows
//   Shapes     token_ids, slots, positions [B] int32, is_corrupt [B] uint8, slot_tokens [S] int32, row_max [B],
//              logits [B, V], adjusted [R, V] float32, columns [S]; workspace partial [B, ceil(V / TILE)] uint2,
//              counters [B] uint32, zero
//   Mapping    a block owns a tile of TILE tokens of a row, a thread groups of four, which share one Philox block;
//              the last block of a row to finish runs the race between the tiles' winners
//   Numerics   float32. A tile's race is run relative to the tile's maximum, which is known in time; the last race
//              relative to the row's. Scores and ids are compared as integers, so that no order can matter
//   Traffic    4 V bytes a row; bandwidth where a few tokens stand out, else the ten rounds of Philox
#include "tinyvllm/prelude.cuh"
#include "philox.cuh"
#include "sample_order.cuh"
#include "sample_row.cuh"

constexpr int tile = THREADS * PER_THREAD, num_groups = PER_THREAD / 4;
constexpr float hopeless = gumbel_min - gumbel_max;  // below it the luckiest draw loses to the unluckiest at z = 0

/// The best of this thread's tokens. A warp draws only what could be its best: bounds of g cost less than logarithms.
__device__ uint64_t race(const SamplingRow& row, const float (&x)[PER_THREAD], float tile_max, int first) {
    float z[PER_THREAD];
    uint32_t words[PER_THREAD];
    float at_least = -INFINITY;  // some token of this warp scores so much
#pragma unroll
    for (int group = 0; group < num_groups; ++group) {
        bool has_hope = false;
#pragma unroll
        for (int i = group * 4; i < group * 4 + 4; ++i) {
            z[i] = row.scaled(x[i], tile_max);
            if (row.is_random && z[i] < hopeless) z[i] = -INFINITY;
            has_hope |= z[i] > -INFINITY;
        }
        uint4 four = make_uint4(0, 0, 0, 0);
        if (row.is_random && has_hope) four = row.random.words(loaded_token(first, group * 4) / 4);
        words[group * 4 + 0] = four.x;
        words[group * 4 + 1] = four.y;
        words[group * 4 + 2] = four.z;
        words[group * 4 + 3] = four.w;
#pragma unroll
        for (int i = group * 4; i < group * 4 + 4; ++i)
            at_least = fmaxf(at_least, row.is_random ? z[i] + gumbel_at_least(words[i]) : z[i]);
    }
    at_least = warp_max(at_least);
    uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        if (z[i] == -INFINITY) continue;
        float score = z[i];
        if (row.is_random) {
            if (z[i] + gumbel_at_most(words[i]) < at_least) continue;
            score += gumbel_of(words[i]);
        }
        const uint64_t mine = standing(score, loaded_token(first, i));
        best = best < mine ? mine : best;
    }
    return best;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_rows(int* token_ids, uint8_t* is_corrupt, int* slot_tokens, float* row_max, uint2* partial,
                uint32_t* counters, const float* logits, const float* adjusted, const int* slots,
                const int* positions, const float* temperature, const float* top_p, const float* min_p,
                const int* top_k, const uint64_t* seed, const int* completion_index, const int* rule_row,
                int vocab_size) {
    __shared__ float maxima[32];
    __shared__ uint64_t scratch[32];
    __shared__ bool is_last;
    pdl_launch_dependents();
    pdl_wait();  // the logits, and perhaps the columns, are the predecessor's
    const int b = blockIdx.y, slot = slots[b], first = blockIdx.x * tile, num_tiles = gridDim.x;
    if (slot < 0) return;  // padding, or a prompt that has not ended: all blocks of the row leave
    const SamplingColumns columns = {temperature, top_p, min_p, top_k, seed, completion_index, rule_row};
    const SamplingRow row = read_row(columns, logits, adjusted, b, slot, positions[b], vocab_size);

    float x[PER_THREAD];
    load_logits(x, row.logits, first, vocab_size);
    float largest = x[0];
#pragma unroll
    for (int i = 1; i < PER_THREAD; ++i) largest = fmaxf(largest, x[i]);
    largest = block_max(largest, maxima);
    uint64_t best = 0;
    if (is_sound(largest) && !row.is_cut()) best = block_best(race(row, x, largest, first), scratch);

    uint2* of_row = partial + size_t(b) * num_tiles;
    if (threadIdx.x == 0) {
        of_row[blockIdx.x] = make_uint2(__float_as_uint(largest), token_of(best));
        is_last = is_last_arrival(counters + b, num_tiles);
    }
    __syncthreads();  // all threads know whether theirs is the last block, and it sees what the others wrote
    if (!is_last) return;

    largest = -INFINITY;
    for (int i = threadIdx.x; i < num_tiles; i += THREADS) largest = fmaxf(largest, __uint_as_float(of_row[i].x));
    largest = block_max(largest, maxima);
    const bool sound = is_sound(largest);
    best = 0;
    if (sound && !row.is_cut()) {
        for (int i = threadIdx.x; i < num_tiles; i += THREADS) {
            if (__uint_as_float(of_row[i].x) == -INFINITY) continue;  // a tile of nothing but -inf has no winner
            const uint32_t token = of_row[i].y;
            const uint64_t mine = standing(row.score(row.scaled(row.logits[token], largest), token), token);
            best = best < mine ? mine : best;
        }
        best = block_best(best, scratch);
    }
    if (threadIdx.x == 0) {
        is_corrupt[b] = !sound;
        row_max[b] = largest;
        if (!sound || !row.is_cut()) token_ids[b] = slot_tokens[slot] = sound ? int(token_of(best)) : 0;
    }
}
