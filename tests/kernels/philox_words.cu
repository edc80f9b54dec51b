// What philox.cuh makes of a row's stream, one token a thread.
//   Formula    words[v] = word v mod 4 of Philox(v div 4, position, completion, 0); u, g and the bounds of g from it
//   Reference  tinyvllm/reference/philox.py
//   Shapes     words [V] uint32, u, g, at_least, at_most [V] float32
//   Mapping    a thread owns a token
//   Numerics   as philox.cuh says
//   Traffic    20 bytes a token
#include "tinyvllm/prelude.cuh"
#include "../../plugins/tinyvllm_samplers/gpu/philox.cuh"

extern "C" __global__ void philox_words(uint32_t* words, float* u, float* g, float* at_least, float* at_most,
                                        uint64_t seed, int completion_index, int position, int vocab_size) {
    const RandomStream random = make_random_stream(seed, completion_index, position);
    const int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= vocab_size) return;
    words[v] = random.word(v);
    u[v] = uniform_of(words[v]);
    g[v] = gumbel_of(words[v]);
    at_least[v] = gumbel_at_least(words[v]);
    at_most[v] = gumbel_at_most(words[v]);
}

/// The same for given words.
extern "C" __global__ void numbers_of_words(float* u, float* g, float* at_least, float* at_most,
                                            const uint32_t* words, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    u[i] = uniform_of(words[i]);
    g[i] = gumbel_of(words[i]);
    at_least[i] = gumbel_at_least(words[i]);
    at_most[i] = gumbel_at_most(words[i]);
}
