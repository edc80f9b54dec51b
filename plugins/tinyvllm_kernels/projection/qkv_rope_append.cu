// Everything of a layer before attention in one: norm, query-key-value projection, rotation, KV append.
//   Formula    heads = norm(x[t]) weight^T + bias; queries rotated to `query`, keys rotated and values as they are to
//              slot slot_mapping[t] of the caches; rotation by the angle of positions[t], x[i] paired with x[i + D/2]
//   Reference  compose of rms_norm_qkv_rope_append in tinyvllm/ops/catalogue.py (without head norms)
//   Shapes     query [T, H, D], caches [blocks, K, block_size, D], x [T, E], norm [E], weight [(H + 2K) D, E], bias
//              [(H + 2K) D] or null, bfloat16; tables [P, D/2] float32; positions, slot_mapping [T] int32;
//              E % 8 == 0 (SIZE_K), D % 16 == 0 (HEAD_DIM), D / 2 a multiple of a tile's pairs
//   Mapping    a tile pairs weight rows i and i + D/2 of a head; see projection.cuh and the core
//   Numerics   float32 sums; one token: x times the norm's weight in float32, several: rounded to bfloat16. 1 / rms
//              multiplies the sums, rotation in float32, rounds once. A negative slot stores nothing (padding)
//   Traffic    2 (H + 2K) D E bytes of weights for up to BATCH_ROWS tokens; bandwidth
#include "tinyvllm/prelude.cuh"
#define HAS_NORM (BATCH_ROWS == 1)
#include "projection.cuh"
#include "../rotate.cuh"

constexpr int half_dim = HEAD_DIM / 2;
static_assert(half_dim % projection::tile_pairs == 0, "a tile stays within a head");

struct QkvEpilogue {
    bf16 *query, *key_cache, *value_cache;
    const bf16* bias;
    const float *cos_table, *sin_table;
    const int *positions, *slot_mapping;
    int num_heads, num_kv_heads, block_size;

    struct Token {
        int position, slot;
    };
    struct Early {  // as loaded: a conversion here would wait for the load
        float cosine = 1.0f, sine = 0.0f;
        bf16 low_bias{0}, high_bias{0};
    };

    TINYVLLM_DEVICE Token token(int row_of_x) const { return {positions[row_of_x], slot_mapping[row_of_x]}; }

    TINYVLLM_DEVICE Early early(Token token, Place place) const {
        Early early;
        if (bias != nullptr) {
            early.low_bias = bias[place.low_row];
            early.high_bias = bias[place.high_row];
        }
        const int head = place.low_row / HEAD_DIM;
        if (head >= num_heads + num_kv_heads) return early;  // a value: turned by nothing
        const size_t angle = size_t(token.position) * half_dim + place.low_row % HEAD_DIM;
        early.cosine = cos_table[angle];
        early.sine = sin_table[angle];
        return early;
    }

    TINYVLLM_DEVICE void store(Token token, Early early, Place place, float low, float high) const {
        low += to_float(early.low_bias);
        high += to_float(early.high_bias);
        rotate(low, high, early.cosine, early.sine);
        const int head = place.low_row / HEAD_DIM, i = place.low_row % HEAD_DIM;
        bf16* to = head_address(query, key_cache, value_cache, place.row_of_x, head, token.slot, num_heads,
                                num_kv_heads, block_size);
        if (to == nullptr) return;
        to[i] = from_float<bf16>(low);
        to[i + half_dim] = from_float<bf16>(high);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, min_blocks)
    qkv_rope_append(bf16* query, bf16* key_cache, bf16* value_cache, float* workspace, uint32_t* counters,
                    const bf16* x, const bf16* norm, const bf16* weight, const bf16* bias, const float* cos_table, const float* sin_table,
                    const int* positions, const int* slot_mapping, int num_rows, int num_heads, int num_kv_heads,
                    int block_size, int num_tiles, float eps) {
    const Input in{x, num_rows, norm, eps, workspace, counters};
    QkvEpilogue epilogue{query,     key_cache,    value_cache, bias,         cos_table, sin_table,
                         positions, slot_mapping, num_heads,   num_kv_heads, block_size};
    const auto rows_of = [](int tile) {
        constexpr int tiles_per_head = half_dim / projection::tile_pairs;
        const int first = tile / tiles_per_head * HEAD_DIM + tile % tiles_per_head * projection::tile_pairs;
        return TileRows{first, first + half_dim};
    };
    projection::project(in, weight, (num_heads + 2 * num_kv_heads) * HEAD_DIM, num_tiles, rows_of, epilogue);
}
