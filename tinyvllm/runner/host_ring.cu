// Ends a step: what it gave goes to memory of the host, and its tokens become the newest of their slots. A copy by the copy
// engine would take 10 us longer to hand over from one graph to the next, and the host some more to ask for it.
//   Formula    ring[count % NUM_PLACES] = count, source...; count += 1;
//              newest[slots[i]] = max(source[i], 0) where slots[i] >= 0
//   Reference  tests/runner/test_host_ring.py
//   Shapes     ring [NUM_PLACES, 1 + N], in memory of the host; count [1]; source [N], of which the first B are the tokens;
//              uint32. newest [S], slots [B]; int32
//   Mapping    a block; a thread copies the words and commits the tokens that are THREADS apart
//   Numerics   exact. A token is below zero where its logits were corrupt: the request has failed by then
//   Traffic    4 N bytes over PCI Express; latency
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    host_ring(uint32_t* ring, uint32_t* count, int* newest, const uint32_t* source, const int* slots, int num_words,
              int num_rows) {
    pdl_launch_dependents();
    pdl_wait();  // the source is the predecessor's
    const uint32_t now = *count;
    uint32_t* place = ring + size_t(now % NUM_PLACES) * (num_words + 1);
    for (int i = threadIdx.x; i < num_words; i += THREADS) place[1 + i] = source[i];
    for (int i = threadIdx.x; i < num_rows; i += THREADS)
        if (slots[i] >= 0) newest[slots[i]] = max(int(source[i]), 0);
    __syncthreads();  // everybody has read the count
    if (threadIdx.x == 0) {
        place[0] = now;
        *count = now + 1;
    }
}
