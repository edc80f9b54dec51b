// The most likely token of each row: greedy sampling.
//   Formula    token[b] = the lowest v of those with logits[b][v] = max over v of logits[b][v]
//   Reference  numpy.argmax; a row is corrupt, and its token 0, where the maximum is NaN or infinite
//   Shapes     token_ids, slots [B] int32, is_corrupt [B] uint8, logits [B, V] float32;
//              workspace partial [B, ceil(V / tile_size)] uint64, counters [B] uint32, zero
//   Mapping    a block owns a tile of a row and walks over it, a thread groups of four tokens; the last block of a row
//              to finish reduces the row's tiles
//   Numerics   exact: a logit and its token are compared as one integer, so no order of reduction can matter
//   Traffic    4 V bytes a row; bandwidth, and for few rows the latency of a block and of the last one
#include "tinyvllm/prelude.cuh"
#include "tinyvllm/shared/sample_order.cuh"
#include "tinyvllm/shared/sample_tile.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    argmax_rows(int* token_ids, uint8_t* is_corrupt, uint64_t* partial, uint32_t* counters, const float* logits,
                const int* slots, int vocab_size, int tile_size) {
    __shared__ uint64_t scratch[32];
    __shared__ bool is_last;
    pdl_launch_dependents();
    pdl_wait();  // the logits, and perhaps the slots, are the predecessor's
    const int row = blockIdx.y, slot = slots[row], num_tiles = gridDim.x;
    if (slot < 0) return;  // padding, or a prompt that has not ended: all blocks of the row leave

    const Tile tile = tile_of_block(logits + size_t(row) * vocab_size, tile_size, vocab_size);
    uint64_t best = block_best(most_likely(tile), scratch);
    uint64_t* of_row = partial + size_t(row) * num_tiles;
    if (threadIdx.x == 0) {
        of_row[blockIdx.x] = best;
        is_last = is_last_arrival(counters + row, num_tiles);
    }
    __syncthreads();  // all threads know whether theirs is the last block, and it sees what the others wrote
    if (!is_last) return;
    best = 0;
    for (int i = threadIdx.x; i < num_tiles; i += THREADS) best = best < of_row[i] ? of_row[i] : best;
    best = block_best(best, scratch);
    if (threadIdx.x == 0) {
        const bool sound = is_sound(score_of(best));
        token_ids[row] = sound ? int(token_of(best)) : 0;
        is_corrupt[row] = !sound;
    }
}
