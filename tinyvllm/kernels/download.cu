// Copies a few bytes to memory of the host: the copy engine takes 10 us longer to hand over between two graphs.
//   Formula    target[i] = source[i]
//   Reference  NumPy's copy
//   Shapes     target, source [N] bytes; target at an address of a multiple of 4
//   Mapping    a block; a thread copies 4 bytes at a time, single ones where the source does not begin at such an
//              address and at the end
//   Numerics   exact
//   Traffic    up to some kilobytes over PCI Express; latency
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    download(uint8_t* target, const uint8_t* source, int num_bytes) {
    pdl_wait();  // the source is the predecessor's
    const int num_words = reinterpret_cast<size_t>(source) % 4 == 0 ? num_bytes / 4 : 0;
    for (int i = threadIdx.x; i < num_words; i += THREADS)
        reinterpret_cast<uint32_t*>(target)[i] = reinterpret_cast<const uint32_t*>(source)[i];
    for (int i = 4 * num_words + int(threadIdx.x); i < num_bytes; i += THREADS) target[i] = source[i];
}
