// Rows of the embedding table.
//   Formula    out[t][:] = table[token_ids[t]][:]; a row of NaN where the id is not in [0, V)
//   Reference  tinyvllm/reference/embedding.py
//   Shapes     out [T, E] bfloat16; token_ids [T] int32, table [V, E] bfloat16; E % 8 == 0 (SIZE_E)
//   Mapping    a block owns a token; a thread copies 16 bytes, and those THREADS further on
//   Numerics   exact. An id of -1 (a step whose logits held NaN) stays visible as NaN, and nothing is read for it
//   Traffic    4 E bytes a token; latency
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding(bf16* out, const int* token_ids, const bf16* table, int vocab_size) {
    const int token = blockIdx.x;
    pdl_launch_dependents();
    pdl_wait();  // the ids may come from the predecessor
    const int id = token_ids[token];
    const bool is_known = id >= 0 && id < vocab_size;
    for (int column = threadIdx.x * 8; column < SIZE_E; column += THREADS * 8) {
        uint4 values = make_uint4(~0u, ~0u, ~0u, ~0u);
        if (is_known) values = load16_constant(table + size_t(id) * SIZE_E + column);
        store16(out + size_t(token) * SIZE_E + column, values);
    }
}
