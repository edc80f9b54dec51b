// Completes the inputs of a step: what is new in the block tables, and tokens that the host has not seen yet.
//   Formula    block_tables[row][column] = block for each of the updates;
//              token_ids[t] = newest[-1 - token_ids[t]] where token_ids[t] < 0
//   Reference  tinyvllm/reference/step_inputs.py
//   Shapes     token_ids [T], block_tables [B, M], newest [S] by slot, updates [1 + 3 U]: how many updates follow, then row,
//              column and block of each; int32
//   Mapping    a thread a token and, with others, an update; a step of one token a sequence is one block
//   Numerics   integers
//   Traffic    a few kilobytes; latency
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    step_inputs(int* token_ids, int* block_tables, const int* newest, const int* updates, int num_tokens,
                int max_blocks, int is_decode) {
    // The first layer's attention, which waits, lets nobody start who does not: see `is_plan_older` there. A prompt has
    // layers enough to make up for the start.
    if (is_decode) pdl_launch_dependents();
    const int first = int(blockIdx.x) * THREADS + int(threadIdx.x), num_threads = int(gridDim.x) * THREADS;
    const int num_updates = updates[0];
    for (int i = first; i < num_updates; i += num_threads) {
        const int* update = updates + 1 + 3 * i;
        block_tables[size_t(update[0]) * max_blocks + update[1]] = update[2];
    }
    for (int t = first; t < num_tokens; t += num_threads) {
        const int token = token_ids[t];
        if (token < 0) token_ids[t] = newest[-1 - token];
    }
}
