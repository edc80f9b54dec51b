// A row in tiles, one a block, and how the block's threads walk over theirs. Kernels that use it give results that do
// not depend on how rows are cut, so the launcher may cut them as the number of rows asks.
#pragma once

namespace tinyvllm {

constexpr int step_tokens = LOADS * 4;  // of a thread in one step of a walk

/// The tokens [first, end) of a row; `first` is a multiple of four.
struct Tile {
    const float* row;
    int first, end, vocab_size;
};

/// The block's tile, `tile_size` tokens but for the row's last.
TINYVLLM_DEVICE Tile tile_of_block(const float* row, int tile_size, int vocab_size) {
    const int first = int(blockIdx.x) * tile_size;
    return {row, first, min(first + tile_size, vocab_size), vocab_size};
}

/// Calls `take(at, x)` and `judge(at)` for each step of a block's threads over the tile. x: the thread's logits as
/// `load_logits` gives them, token `loaded_token(at, i)` being element i; while `judge` works, the next step's are under
/// way in their place. All threads make the same steps.
template <class Take, class Judge>
TINYVLLM_DEVICE void each_step(const Tile& tile, Take take, Judge judge) {
    const int step = step_tokens * int(blockDim.x);
    float x[step_tokens];
    load_logits(x, tile.row, tile.first, tile.end, tile.vocab_size);
#pragma unroll 1
    for (int at = tile.first; at < tile.end; at += step) {
        take(at, x);
        load_logits(x, tile.row, at + step, tile.end, tile.vocab_size);
        judge(at);
    }
}

/// The standing of the thread's largest logit, the lowest id of equals; an infinity or a NaN stands above all.
TINYVLLM_DEVICE uint64_t most_likely(const Tile& tile) {
    float largest = -INFINITY;
    int token = tile.first;
    bool is_finite = true;
    const auto take = [&](int at, const float(&x)[step_tokens]) {
#pragma unroll
        for (int i = 0; i < step_tokens; ++i) {
            is_finite &= x[i] < INFINITY;
            if (x[i] > largest) {  // a thread's ids grow: the first of equals stays
                largest = x[i];
                token = loaded_token(at, i);
            }
        }
    };
    each_step(tile, take, [](int) {});
    return standing(is_finite ? largest : INFINITY, token);
}

}  // namespace tinyvllm
