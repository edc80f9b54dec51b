// What both attention kernels are made of: a tile of keys and values from the paged cache to shared memory, and rows of
// queries that attend to it by the online softmax (Milakov & Gimelshein 2018) on tensor cores (Dao 2023).
//
// Everything a row's result is made of happens here, in one order, so that both kernels give a row the same bits.
// A row is one query head of one token; lane l holds rows g = l / 4 and, with `has_upper`, g + 8 of each row tile.
//
// The launcher defines HEAD_DIM (a multiple of 16), BLOCK_SIZE (a power of two) and GROUP_SIZE (heads per KV head).
#pragma once
#include "tinyvllm/prelude.cuh"

constexpr int head_dim = HEAD_DIM, block_size = BLOCK_SIZE, group_size = GROUP_SIZE;
// head_dim / 8 is even, so rows of this pitch lie an odd number of 16-byte words apart: the eight rows of an ldmatrix
// are in eight different groups of banks.
constexpr int pitch = head_dim + 8;

/// 2^x with a relative error below 2^-22; 0 for -infinity.
TINYVLLM_DEVICE float exp2_fast(float x) {
#if defined(TINYVLLM_EMULATOR)
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/// The positions begin .. end - 1 of one sequence that some query sees; everything else in the cache is never read.
struct Visible {
    int begin, end;
};

/// One layer's cache: key and value [num_blocks, num_kv_heads, block_size, head_dim].
struct Cache {
    const bf16* key;
    const bf16* value;
    int num_kv_heads;
};

template <int num_keys>
struct KeyValueTile {
    bf16 key[num_keys][pitch];
    bf16 value[num_keys][pitch];
};

/// The blocks that hold `num_keys` positions from `position` (a multiple of num_keys) on: lane j gets the j-th.
/// Entries of the table that hold nothing visible are meaningless and not used. All lanes of a warp call it.
template <int num_keys>
TINYVLLM_DEVICE int load_block_ids(const int* block_table, int position, Visible visible) {
    constexpr int num_blocks = num_keys > block_size ? num_keys / block_size : 1;
    const int lane = lane_id(), index = position / block_size + lane;
    const bool is_needed =
        lane < num_blocks && index * block_size < visible.end && (index + 1) * block_size > visible.begin;
    return is_needed ? block_table[index] : 0;
}

/// Starts the copy of `num_keys` positions of one KV head by `num_threads` threads, 16 bytes a thread at a time.
/// Positions that are not visible become zeros: what lies there may be NaN, and 0 * NaN is not 0.
template <int num_keys, int num_threads>
TINYVLLM_DEVICE void start_fetch(KeyValueTile<num_keys>& tile, const Cache& cache, int head, int block_ids,
                                 int position, Visible visible, int thread) {
    constexpr int vectors_per_row = head_dim / 8;
    static_assert(num_keys * vectors_per_row % num_threads == 0, "every thread copies as many vectors");
#pragma unroll 4  // unrolled whole, the addresses of 64 rows a warp would spill
    for (int i = 0; i < num_keys * vectors_per_row / num_threads; ++i) {
        const int vector = i * num_threads + thread, row = vector / vectors_per_row;
        const int column = vector % vectors_per_row * 8, p = position + row;
        const int block = __shfl_sync(full_warp, block_ids, num_keys > block_size ? row / block_size : 0);
        const size_t slot = (size_t(block) * cache.num_kv_heads + head) * block_size + p % block_size;
        const bool is_visible = visible.begin <= p && p < visible.end;
        cp_async16_or_zero(&tile.key[row][column], cache.key + slot * head_dim + column, is_visible);
        cp_async16_or_zero(&tile.value[row][column], cache.value + slot * head_dim + column, is_visible);
    }
}

/// Keys low .. high - 1 of a tile, which a row may see; as indices in the tile, not clamped to it.
struct Span {
    int low, high;
};

/// The running softmax of 16 * row_tiles rows: `max` in units of log2, `sum` this lane's share of the row's sum, `out`
/// not yet divided by the sum, in mma accumulator layout.
template <int row_tiles, bool has_upper>
struct Rows {
    static constexpr int num_halves = has_upper ? 2 : 1;
    float max[row_tiles][num_halves];
    float sum[row_tiles][num_halves];
    float out[row_tiles][head_dim / 8][4];

    TINYVLLM_DEVICE void clear() {
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
            for (int half = 0; half < num_halves; ++half) max[r][half] = -INFINITY, sum[r][half] = 0.0f;
#pragma unroll
            for (int n = 0; n < head_dim / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[r][n][i] = 0.0f;
        }
    }
};

/// Makes the scores of the warp's rows with every key of the tile. `load_query(a, r, k)` gives the fragment of row tile
/// r and columns 16 k to 16 k + 15 of the queries.
template <int num_keys, int row_tiles, class LoadQuery>
TINYVLLM_DEVICE void score(float (&scores)[row_tiles][num_keys / 8][4], const KeyValueTile<num_keys>& tile,
                           LoadQuery load_query) {
    const int lane = lane_id();
#pragma unroll
    for (int k = 0; k < head_dim / 16; ++k) {
        uint32_t a[row_tiles][4];
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) load_query(a[r], r, k);
#pragma unroll
        for (int n = 0; n < num_keys / 16; ++n) {
            uint32_t b[4];  // keys 0-7 and 8-15 of the sixteen, each 16 long
            ldmatrix_x4(b, &tile.key[n * 16 + lane % 8 + lane / 16 * 8][k * 16 + lane / 8 % 2 * 8]);
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int r = 0; r < row_tiles; ++r) {
                mma_bf16(scores[r][2 * n], a[r], first);
                mma_bf16(scores[r][2 * n + 1], a[r], second);
            }
        }
    }
}

/// Scores of keys that a row does not see become -infinity.
template <int num_keys, int row_tiles, int num_halves, class SpanOf>
TINYVLLM_DEVICE void mask(float (&scores)[row_tiles][num_keys / 8][4], SpanOf span_of) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
        for (int half = 0; half < num_halves; ++half) {
            const Span span = span_of(r, half);
#pragma unroll
            for (int n = 0; n < num_keys / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int key = n * 8 + lane_id() % 4 * 2 + i;
                    if (key < span.low || key >= span.high) scores[r][n][2 * half + i] = -INFINITY;
                }
            }
        }
    }
}

/// Turns scores into weights 2^(scale * score - max), after raising the rows' maxima, and rescales what rows hold.
template <int num_keys, int row_tiles, bool has_upper>
TINYVLLM_DEVICE void weigh(float (&scores)[row_tiles][num_keys / 8][4], Rows<row_tiles, has_upper>& rows,
                           float scale) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
        for (int half = 0; half < rows.num_halves; ++half) {
            float tile_max = -INFINITY;
#pragma unroll
            for (int n = 0; n < num_keys / 8; ++n)
                tile_max = fmaxf(tile_max, fmaxf(scores[r][n][2 * half], scores[r][n][2 * half + 1]));
            const float old_max = rows.max[r][half], new_max = fmaxf(old_max, warp_max<4>(tile_max) * scale);
            const float base = new_max == -INFINITY ? 0.0f : new_max;  // a row that has seen nothing yet
            const float shrink = exp2_fast(old_max - base);
            float tile_sum = 0.0f;
#pragma unroll
            for (int n = 0; n < num_keys / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& s = scores[r][n][2 * half + i];
                    s = exp2_fast(fmaf(s, scale, -base));
                    tile_sum += s;
                }
            }
            rows.max[r][half] = new_max;
            rows.sum[r][half] = fmaf(rows.sum[r][half], shrink, tile_sum);
#pragma unroll
            for (int n = 0; n < head_dim / 8; ++n) {
                rows.out[r][n][2 * half] *= shrink;
                rows.out[r][n][2 * half + 1] *= shrink;
            }
        }
    }
}

/// Adds weights * values to the rows; the accumulators of the first product are, pairwise, the A of the second.
template <int num_keys, int row_tiles, bool has_upper>
TINYVLLM_DEVICE void add_values(Rows<row_tiles, has_upper>& rows, const float (&weights)[row_tiles][num_keys / 8][4],
                                const KeyValueTile<num_keys>& tile) {
    const int lane = lane_id();
#pragma unroll
    for (int k = 0; k < num_keys / 16; ++k) {
        uint32_t a[row_tiles][4];
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
            const float(&low)[4] = weights[r][2 * k], (&high)[4] = weights[r][2 * k + 1];
            a[r][0] = pack_bf16(low[0], low[1]);
            a[r][1] = has_upper ? pack_bf16(low[2], low[3]) : 0;
            a[r][2] = pack_bf16(high[0], high[1]);
            a[r][3] = has_upper ? pack_bf16(high[2], high[3]) : 0;
        }
#pragma unroll
        for (int n = 0; n < head_dim / 16; ++n) {
            uint32_t b[4];  // columns 0-7 and 8-15 of the sixteen, each 16 keys long
            ldmatrix_x4_trans(b, &tile.value[k * 16 + lane % 16][n * 16 + lane / 16 * 8]);
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int r = 0; r < row_tiles; ++r) {
                mma_bf16(rows.out[r][2 * n], a[r], first);
                mma_bf16(rows.out[r][2 * n + 1], a[r], second);
            }
        }
    }
}

/// Lets the warp's rows attend to a tile. A row sees the keys in `span_of(row tile, half)`; `is_masked` may be false, the
/// same in all lanes, if every span covers the tile. A row that sees none of the keys is left as it was, to the bit.
template <int num_keys, int row_tiles, bool has_upper, class LoadQuery, class SpanOf>
TINYVLLM_DEVICE void attend(Rows<row_tiles, has_upper>& rows, const KeyValueTile<num_keys>& tile,
                            LoadQuery load_query, bool is_masked, SpanOf span_of, float scale) {
    float scores[row_tiles][num_keys / 8][4] = {};
    score<num_keys, row_tiles>(scores, tile, load_query);
    if (is_masked) mask<num_keys, row_tiles, Rows<row_tiles, has_upper>::num_halves>(scores, span_of);
    weigh<num_keys, row_tiles, has_upper>(scores, rows, scale);
    add_values<num_keys, row_tiles, has_upper>(rows, scores, tile);
}

/// The softmax of a row over several parts, each with its own maximum, added in order.
struct Merge {
    float max = -INFINITY, sum = 0.0f;

    /// Takes a part's maximum and sum; returns the factors of what was there and of what comes.
    TINYVLLM_DEVICE float2 add(float part_max, float part_sum) {
        const float new_max = fmaxf(max, part_max), base = new_max == -INFINITY ? 0.0f : new_max;
        const float2 factors = make_float2(exp2_fast(max - base), exp2_fast(part_max - base));
        max = new_max;
        sum = fmaf(part_sum, factors.y, sum * factors.x);
        return factors;
    }

    /// What the merged values are to be multiplied with; a row that has seen nothing (padding) becomes zeros.
    TINYVLLM_DEVICE float inverse() const { return sum > 0.0f ? 1.0f / sum : 0.0f; }
};

/// One value of the merged row.
TINYVLLM_DEVICE float merged(float before, float part, float2 factors) {
    return fmaf(part, factors.y, before * factors.x);
}
