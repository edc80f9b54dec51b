// Copies what a step gave to memory of the host, as part of the step: the copy engine takes 10 us longer to hand over from
// one graph to the next, and the host some more to ask it.
//   Formula    ring[count % NUM_PLACES] = count, source...; count += 1
//   Reference  tests/kernels/test_host_ring.py
//   Shapes     ring [NUM_PLACES, 1 + N], in memory of the host; count [1]; source [N]; uint32
//   Mapping    a block; a thread copies the words that are THREADS apart
//   Numerics   exact
//   Traffic    4 N bytes over PCI Express; latency
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    host_ring(uint32_t* ring, uint32_t* count, const uint32_t* source, int num_words) {
    pdl_launch_dependents();
    pdl_wait();  // the source is the predecessor's
    const uint32_t now = *count;
    uint32_t* place = ring + size_t(now % NUM_PLACES) * (num_words + 1);
    for (int i = threadIdx.x; i < num_words; i += THREADS) place[1 + i] = source[i];
    __syncthreads();  // everybody has read the count
    if (threadIdx.x == 0) {
        place[0] = now;
        *count = now + 1;
    }
}
