// Tokens of corrupt rows as -1, the form in which greedy decoding hands them on.
//   Formula    token_ids[b] = -1 where is_corrupt[b]
//   Reference  tinyvllm/reference/argmax.py
//   Shapes     token_ids [B] int32, is_corrupt [B] uint8
//   Mapping    a thread owns a row
//   Numerics   exact
//   Traffic    9 bytes a row; latency
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    mark_corrupt(int* token_ids, const uint8_t* is_corrupt, int num_rows) {
    const int row = int(blockIdx.x) * THREADS + int(threadIdx.x);
    pdl_launch_dependents();
    pdl_wait();  // both are the predecessor's
    if (row < num_rows && is_corrupt[row]) token_ids[row] = -1;
}
