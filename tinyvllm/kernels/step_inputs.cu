// Completes the inputs of a step: what is new in the block tables, tokens that the host has not seen yet, and, for a
// step that is the one before once more, everything else.
//   Formula    block_tables[row][column] = block for each of the updates;
//              token_ids[t] = max(sampled[-1 - token_ids[t]], 0) where token_ids[t] < 0.
//              A next step: token_ids[t] = max(sampled[t], 0), one is added to positions, context_lens and
//              new_positions, and slot_mapping[t] is the slot of the new position; padding, slot -1, stays as it is
//   Reference  tinyvllm/reference/step_inputs.py
//   Shapes     token_ids, positions, slot_mapping [T], context_lens, new_positions [B], sampled [S], block_tables
//              [B, M], updates [2 + 3 U]: whether it is a next step, how many updates, row, column, block of each; int32
//   Mapping    a thread a token and, with others, an update; a step of one token a sequence is one block, which leaves
//              the header saying that the next step is a next step and that nothing is new
//   Numerics   integers. A sampled token is below zero where its logits were corrupt: the request has failed by then
//   Traffic    a few kilobytes; latency
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    step_inputs(int* token_ids, int* positions, int* slot_mapping, int* context_lens, int* new_positions,
                int* block_tables, const int* sampled, int* updates, int num_tokens, int max_blocks, int block_size,
                int is_decode) {
    // The first layer's attention, which waits, lets nobody start who does not: see `is_plan_older` there. A prompt has
    // layers enough to make up for the start.
    if (is_decode) pdl_launch_dependents();
    const int first = int(blockIdx.x) * THREADS + int(threadIdx.x), num_threads = int(gridDim.x) * THREADS;
    const bool is_next = is_decode && updates[0] != 0;
    const int num_updates = updates[1];
    for (int i = first; i < num_updates; i += num_threads) {
        const int* update = updates + 2 + 3 * i;
        block_tables[size_t(update[0]) * max_blocks + update[1]] = update[2];
    }
    if (is_decode) __syncthreads();  // the tables are complete, and everybody has read the header
    for (int t = first; t < num_tokens; t += num_threads) {
        const int token = is_next ? -1 - t : token_ids[t];
        if (is_next && slot_mapping[t] >= 0) {
            const int position = positions[t] + 1;
            positions[t] = position;
            context_lens[t] = new_positions[t] = position + 1;
            const int block = block_tables[size_t(t) * max_blocks + position / block_size];
            slot_mapping[t] = block * block_size + position % block_size;
        }
        if (token < 0) token_ids[t] = max(sampled[-1 - token], 0);
    }
    if (is_decode && threadIdx.x == 0) {
        updates[0] = 1;
        updates[1] = 0;
    }
}
