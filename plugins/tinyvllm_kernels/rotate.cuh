// The rotary embedding of one pair, and where a head of a token is stored. Needs HEAD_DIM.
#pragma once

/// Turns the pair (low, high) = (x[i], x[i + D/2]) by the angle with this cosine and sine.
TINYVLLM_DEVICE void rotate(float& low, float& high, float cosine, float sine) {
    const float turned = low * cosine - high * sine;
    high = high * cosine + low * sine;
    low = turned;
}

/// Where head `head` of a token goes, heads counted as in the projection's output (queries, keys, values): a row of
/// `query` [T, H, D], or the token's slot in a cache [blocks, K, block_size, D]; null for a key or value without slot.
TINYVLLM_DEVICE bf16* head_address(bf16* query, bf16* key_cache, bf16* value_cache, int token, int head, int slot,
                                   int num_heads, int num_kv_heads, int block_size) {
    if (head < num_heads) return query + (size_t(token) * num_heads + head) * HEAD_DIM;
    if (slot < 0) return nullptr;
    const bool is_key = head < num_heads + num_kv_heads;
    const int kv_head = head - num_heads - (is_key ? 0 : num_kv_heads);
    const int block = slot / block_size, offset = slot % block_size;
    bf16* cache = is_key ? key_cache : value_cache;
    return cache + ((size_t(block) * num_kv_heads + kv_head) * block_size + offset) * HEAD_DIM;
}
