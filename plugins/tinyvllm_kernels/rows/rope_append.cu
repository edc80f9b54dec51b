// Everything between the query-key-value projection and attention: optional norm of each head, rotation, KV append.
//   Formula    (a, b) = (x[i], x[i + D/2]) -> (a cos - b sin, b cos + a sin), angle of positions[t] and i;
//              queries go to `query`, keys (rotated) and values (as they are) to slot slot_mapping[t] of the caches
//   Reference  tinyvllm/reference/rope.py, kv_append.py, rms_norm.py (for the heads' norms)
//   Shapes     query [T, H, D], caches [blocks, K, block_size, D], qkv [T, (H + 2K) D] bfloat16; tables [P, D/2]
//              float32; norms [D] bfloat16, both or neither; positions, slot_mapping [T] int32; D % 16 == 0 (HEAD_DIM)
//   Mapping    LANES neighbouring lanes own a head of a token, each of them 8 pairs: two loads, two stores of 16 bytes
//   Numerics   float32 from the stored qkv on; rounds once. A negative slot stores nothing (padding)
//   Traffic    4 (H + 2K) D bytes a token; latency for a few rows
#include "tinyvllm/prelude.cuh"
#include "../rotate.cuh"
#include "tinyvllm/shared/vectors.cuh"

constexpr int half_dim = HEAD_DIM / 2;
constexpr int vectors_per_half = half_dim / 8;  // lanes with work
constexpr int lanes_per_head = LANES;           // the next power of two, so that a head's norm is a shuffle reduction

/// Scales a head to unit root mean square, times `norm`; values, which have none (null), only join the shuffles.
TINYVLLM_DEVICE void normalise(float (&low)[8], float (&high)[8], const bf16* norm, int column, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += low[i] * low[i] + high[i] * high[i];
    const float rstd = 1.0f / sqrtf(warp_sum<lanes_per_head>(squares) * (1.0f / HEAD_DIM) + eps);
    if (norm == nullptr) return;
    float low_weight[8], high_weight[8];
    unpack8(low_weight, load16_constant(norm + column));
    unpack8(high_weight, load16_constant(norm + half_dim + column));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        low[i] *= rstd * low_weight[i];
        high[i] *= rstd * high_weight[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_append(bf16* query, bf16* key_cache, bf16* value_cache, const bf16* qkv, const bf16* query_norm,
                const bf16* key_norm, const float* cos_table, const float* sin_table, const int* positions,
                const int* slot_mapping, int num_heads, int num_kv_heads, int block_size, float eps) {
    const int token = blockIdx.y, num_all = num_heads + 2 * num_kv_heads;
    const int head = int(blockIdx.x * THREADS + threadIdx.x) / lanes_per_head;
    const int lane = int(threadIdx.x) % lanes_per_head, column = lane * 8;
    // Every lane goes as far as the shuffles of the norm; those without work carry zeros.
    const bool has_work = head < num_all && lane < vectors_per_half;
    pdl_launch_dependents();
    pdl_wait();  // qkv is the predecessor's
    float low[8] = {}, high[8] = {};
    if (has_work) {
        const bf16* from = qkv + (size_t(token) * num_all + head) * HEAD_DIM + column;
        unpack8(low, load16(from));
        unpack8(high, load16(from + half_dim));
    }
    const int position = positions[token], slot = slot_mapping[token];
    if (query_norm != nullptr) {
        const bf16* norm = head < num_heads ? query_norm : key_norm;
        normalise(low, high, has_work && head < num_heads + num_kv_heads ? norm : nullptr, column, eps);
    }
    if (!has_work) return;
    if (head < num_heads + num_kv_heads) {
        const size_t angle = size_t(position) * half_dim + column;
#pragma unroll
        for (int i = 0; i < 8; ++i) rotate(low[i], high[i], cos_table[angle + i], sin_table[angle + i]);
    }
    bf16* to = head_address(query, key_cache, value_cache, token, head, slot, num_heads, num_kv_heads, block_size);
    if (to == nullptr) return;
    store16(to + column, pack8(low));
    store16(to + half_dim + column, pack8(high));
}
