// Completes the inputs of a step: tokens that the host has not seen yet, and what is new in the block tables.
//   Formula    token_ids[t] = max(sampled[-1 - token_ids[t]], 0) where token_ids[t] < 0;
//              block_tables[row][column] = block for each of the updates
//   Reference  tinyvllm/reference/step_inputs.py
//   Shapes     token_ids [T], sampled [S], block_tables [B, M], updates [1 + 3 U]: how many, then row, column, block; int32
//   Mapping    a thread a token and, with others, an update
//   Numerics   integers. A sampled token is below zero where its logits were corrupt: the request has failed by then
//   Traffic    a few kilobytes; latency
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    step_inputs(int* token_ids, int* block_tables, const int* sampled, const int* updates, int num_tokens,
                int max_blocks) {
    // No pdl_launch_dependents: kernels after the next one read the block tables before their wait.
    const int thread = int(blockIdx.x) * THREADS + int(threadIdx.x), num_threads = int(gridDim.x) * THREADS;
    if (thread < num_tokens) {
        const int token = token_ids[thread];
        if (token < 0) token_ids[thread] = max(sampled[-1 - token], 0);
    }
    const int num_updates = updates[0];
    for (int i = thread; i < num_updates; i += num_threads) {
        const int* update = updates + 1 + 3 * i;
        block_tables[size_t(update[0]) * max_blocks + update[1]] = update[2];
    }
}
