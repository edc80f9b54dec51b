// One token a row, greedy or drawn from the whole vocabulary, in one pass over the logits; sample_cut.cu finds out which
// of the drawn ones min_p, top_k or top_p would have cut.
//   Formula    token[b] = argmax over v of z + g, lowest v of equals; z = (x - max x) / temperature, x the row's logits
//              after its rules, g Gumbel noise of (seed, completion, position, v); argmax of x at temperature 0
//   Reference  tinyvllm/reference/sampling.py, philox.py; plugins/tinyvllm_samplers/default.py for corrupt rows
//   Shapes     token_ids, slots, positions [B] int32, is_corrupt [B] uint8, row_max [B], logits [B, V],
//              adjusted [R, V] float32, columns [S]; workspace records [B, ceil(V / tile_size)], counters [B] uint32, zero
//   Mapping    a block owns a tile of a row and walks over it, a thread groups of four tokens, which share one Philox
//              block; the last block of a row to finish runs the race among what the tiles' blocks have left
//   Numerics   float32; no order can matter (sample_race.cuh)
//   Traffic    4 V bytes a row; bandwidth for many rows: the ten rounds of Philox, where no token stands out, take
//              hardly longer, and run beside the loads. For few rows the latency of a block and of the last one
#include "tinyvllm/prelude.cuh"
#include "philox.cuh"
#include "tinyvllm/shared/sample_order.cuh"
#include "sample_row.cuh"
#include "tinyvllm/shared/sample_tile.cuh"

#include "sample_race.cuh"  // the last: it uses most of them

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    sample_rows(int* token_ids, uint8_t* is_corrupt, float* row_max, Record* records, uint32_t* counters,
                const float* logits, const float* adjusted, const int* slots, const int* positions,
                const float* temperature, const float* top_p, const float* min_p,
                const int* top_k, const uint64_t* seed, const int* completion_index, const int* rule_row,
                int vocab_size, int tile_size) {
    __shared__ Shortlist list;
    __shared__ float maxima[32];
    __shared__ uint64_t scratch[32];
    __shared__ bool is_last;
    pdl_launch_dependents();
    if (threadIdx.x == 0) list.best = list.size = list.num_left = 0;
    __syncthreads();  // the list is empty before anybody lists anything
    pdl_wait();  // the logits, and perhaps the columns, are the predecessor's
    const int b = blockIdx.y, slot = slots[b], num_tiles = gridDim.x;
    if (slot < 0) return;  // padding, or a prompt that has not ended: all blocks of the row leave
    const SamplingColumns columns = {temperature, top_p, min_p, top_k, seed, completion_index, rule_row};
    const SamplingRow row = read_row(columns, logits, adjusted, b, slot, positions[b], vocab_size);
    const Tile tile = tile_of_block(row.logits, tile_size, vocab_size);
    records += size_t(b) * num_tiles;
    Record& mine = records[blockIdx.x];

    const auto all_enter = [](float) { return true; };
    if (row.is_random) {
        auto race = race_of(row, tile, list, all_enter);
        const auto take = [&](int at, const float(&x)[step_tokens]) { race.take(at, x); };
        each_step(tile, take, [&](int at) { race.judge(at); });
        const float largest = block_max(race.is_finite ? race.largest : INFINITY, maxima);
        if (threadIdx.x == 0) mine.largest = largest;
        leave(mine, list);
    } else {
        const uint64_t best = block_best(most_likely(tile), scratch);
        if (threadIdx.x == 0) {
            mine.largest = score_of(best);
            mine.num_candidates = 1;
            mine.candidates[0] = {token_of(best), score_of(best)};
        }
    }
    if (threadIdx.x == 0) is_last = is_last_arrival(counters + b, num_tiles);
    __syncthreads();  // all threads know whether theirs is the last block, and it sees what the others wrote
    if (!is_last) return;

    float largest = -INFINITY;
    for (int i = threadIdx.x; i < num_tiles; i += THREADS) largest = fmaxf(largest, records[i].largest);
    largest = block_max(largest, maxima);
    const bool sound = is_sound(largest), is_listed = name_all(records, num_tiles);
    uint64_t best = 0;
    if (sound)
        best = block_best(last_race(row, records, num_tiles, largest, is_listed, vocab_size, all_enter), scratch);
    if (threadIdx.x == 0) {
        is_corrupt[b] = !sound;
        row_max[b] = largest;
        token_ids[b] = sound ? int(token_of(best)) : 0;
    }
}
