// Causal attention of many query tokens a sequence over the paged cache (FlashAttention-2: Dao 2023): prompts, chunks
// of them, and steps that mix them with decoding sequences.
//   Formula    out[t][h] = sum over s of softmax(scale * q[t][h] . k[s])[s] v[s]; token t at position p sees
//              s = 0 .. p, or p - sliding_window + 1 .. p
//   Reference  tinyvllm/reference/paged_attention.py
//   Shapes     out, query [T, H, D]; caches [num_blocks, K, block_size, D] bfloat16; block_tables [B, M],
//              context_lens [B], cu_seqlens_q [B+1] int32. Sequence b computes its last tokens, rows cu_seqlens_q[b]
//              to cu_seqlens_q[b+1]; with fewer than min_queries of them it is left to other kernels
//   Mapping    the H/K query heads of a KV head at a token are neighbouring rows: row = token * H/K + head. A block owns
//              BLOCK_ROWS of one sequence and KV head, a warp 16 * ROW_TILES of them, a group of four lanes a row of
//              each mma tile. Keys come in tiles of 64 absolute positions, in order, two stages. Which rows a block
//              owns it finds in cu_seqlens_q: the grid depends on T and B alone
//   Numerics   float32 scores, softmax and sums; weights rounded to bfloat16 for the second product. A tile that a row
//              does not see leaves its bits alone, so chunks and company change nothing. SPLIT_TILES > 0
//              (batch_invariant): the softmax starts anew at fixed positions and is merged, as attention_decode's is
//   Traffic    4 D bytes a KV head and visible position for every BLOCK_ROWS rows, mostly from L2; 4 H D flops a token
//              and visible position bound it
#include "attention_tile.cuh"

constexpr int num_warps = 4, threads = 32 * num_warps, row_tiles = ROW_TILES;
constexpr int warp_rows = 16 * row_tiles, block_rows = num_warps * warp_rows;
constexpr int tile_keys = 64, num_stages = 2, split_tiles = SPLIT_TILES;
constexpr bool has_fixed_splits = split_tiles > 0;

struct Shared {
    KeyValueTile<tile_keys> stages[num_stages];
    bf16 query[block_rows][pitch];  // read anew for every tile: as fragments it would take the registers of half a tile
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same size");

/// Where the rows of sequence b begin, in blocks: one more than it may need is kept for each sequence before it.
TINYVLLM_DEVICE int first_block_of(const int* cu_seqlens_q, int b) {
    return int(int64_t(cu_seqlens_q[b]) * group_size / block_rows) + b;
}

/// The sequence that owns this row of blocks. Every thread calls it.
TINYVLLM_DEVICE int find_sequence(const int* cu_seqlens_q, int num_sequences, int block) {
    int num_begun = 0;
    for (int first = 0; first < num_sequences; first += threads) {
        const int b = first + int(threadIdx.x);
        // A barrier for its sum alone: it orders no memory.
        num_begun += __syncthreads_count(b < num_sequences && first_block_of(cu_seqlens_q, b) <= block);
    }
    return num_begun - 1;
}

/// The rows of a block, or of a warp: `first` to `first + count - 1` of a sequence and KV head.
struct RowRange {
    int first, count;
    int first_position;  // of the sequence's row 0
    int sliding_window;

    TINYVLLM_DEVICE int position(int row) const { return first_position + row / group_size; }
    TINYVLLM_DEVICE int low(int row) const {
        return sliding_window > 0 ? max(0, position(row) - sliding_window + 1) : 0;
    }
    /// What any of the rows sees.
    TINYVLLM_DEVICE Visible seen_by_any() const {
        return count > 0 ? Visible{low(first), position(first + count - 1) + 1} : Visible{0, 0};
    }
    /// What all of the rows see; may be empty.
    TINYVLLM_DEVICE Visible seen_by_all() const { return {low(first + count - 1), position(first) + 1}; }
};

/// Where row `row` of the sequence and KV head lies in query and out.
struct RowAddress {
    int first_token, num_heads, first_head;

    TINYVLLM_DEVICE size_t operator()(int row) const {
        const int token = first_token + row / group_size, head = first_head + row % group_size;
        return (size_t(token) * num_heads + head) * head_dim;
    }
};

/// Starts the copy of the block's queries; rows beyond the last become zeros.
TINYVLLM_DEVICE void start_query(bf16 (&to)[block_rows][pitch], const bf16* query, const RowRange& rows,
                                 const RowAddress& address) {
    constexpr int vectors_per_row = head_dim / 8;
#pragma unroll 2
    for (int i = thread_rank(); i < block_rows * vectors_per_row; i += threads) {
        const int row = i / vectors_per_row, column = i % vectors_per_row * 8;
        const bool is_row = row < rows.count;
        cp_async16_or_zero(&to[row][column], query + (is_row ? address(rows.first + row) + column : 0), is_row);
    }
}

/// What batch-invariant rows have from the splits before the present one; nothing otherwise.
struct Totals {
    Merge merge[row_tiles][2];
    float out[row_tiles][head_dim / 8][4];

    TINYVLLM_DEVICE void clear() {
#pragma unroll
        for (int r = 0; r < row_tiles; ++r)
#pragma unroll
            for (int n = 0; n < head_dim / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[r][n][i] = 0.0f;
    }

    /// Merges `rows`, the next split, and clears them.
    TINYVLLM_DEVICE void add(Rows<row_tiles, true>& rows) {
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float2 factors = merge[r][half].add(rows.max[r][half], warp_sum<4>(rows.sum[r][half]));
#pragma unroll
                for (int n = 0; n < head_dim / 8; ++n)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i)
                        out[r][n][i] = merged(out[r][n][i], rows.out[r][n][i], factors);
            }
        }
        rows.clear();
    }
};

TINYVLLM_DEVICE void write_out(bf16* out, const RowRange& rows, const RowAddress& address,
                               const float (&values)[row_tiles][head_dim / 8][4], const float (&inverse)[row_tiles][2]) {
    const int column = lane_id() % 4 * 2;
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = r * 16 + half * 8 + lane_id() / 4;
            if (row >= rows.count) continue;
            bf16* to = out + address(rows.first + row) + column;
#pragma unroll
            for (int n = 0; n < head_dim / 8; ++n)
                *reinterpret_cast<uint32_t*>(to + n * 8) = pack_bf16(values[r][n][2 * half] * inverse[r][half],
                                                                     values[r][n][2 * half + 1] * inverse[r][half]);
        }
    }
}

/// Lets the warp's rows attend to the tile at `position`.
TINYVLLM_DEVICE void attend_at(Rows<row_tiles, true>& rows, const Shared& shared, int stage, const RowRange& range,
                               int position, float scale_log2) {
    const Visible any = range.seen_by_any(), all = range.seen_by_all();
    if (position >= any.end || position + tile_keys <= any.begin) return;
    const bool is_masked = position < all.begin || position + tile_keys > all.end;
    const auto load_query = [&](uint32_t (&a)[4], int r, int k) {
        const int row = warp_id() * warp_rows + r * 16 + lane_id() % 16;
        ldmatrix_x4(a, &shared.query[row][k * 16 + lane_id() / 16 * 8]);
    };
    const auto span_of = [&](int r, int half) {
        const int row = range.first + r * 16 + half * 8 + lane_id() / 4;
        return Span{range.low(row) - position, range.position(row) + 1 - position};
    };
    attend<tile_keys, row_tiles, true>(rows, shared.stages[stage], load_query, is_masked, span_of, scale_log2);
}

extern "C" __global__ void __launch_bounds__(threads, 1)
    attention_prefill(bf16* out, const bf16* query, const bf16* key_cache, const bf16* value_cache,
                      const int* block_tables, const int* context_lens, const int* cu_seqlens_q, int num_sequences,
                      int num_kv_heads, int max_blocks, int sliding_window, float scale_log2, int min_queries,
                      int is_plan_older) {
    Shared& shared = *dynamic_shared<Shared>();
    if (!is_plan_older) pdl_wait();  // lengths and ends may be new
    pdl_launch_dependents();         // only now: whoever starts after this kernel takes them for older
    // The last rows of a prompt see most: they start first.
    const int block = int(gridDim.y - 1 - blockIdx.y), head = int(blockIdx.x);
    const int sequence = find_sequence(cu_seqlens_q, num_sequences, block);
    const int first_token = cu_seqlens_q[sequence], num_queries = cu_seqlens_q[sequence + 1] - first_token;
    const int first_row = (block - first_block_of(cu_seqlens_q, sequence)) * block_rows;
    const int num_rows = num_queries * group_size - first_row, first_position = context_lens[sequence] - num_queries;
    pdl_wait();  // queries and the last keys and values are the predecessor's
    if (num_rows <= 0 || num_queries < min_queries) return;

    const RowRange block_range = {first_row, min(num_rows, block_rows), first_position, sliding_window};
    const int warp_first = warp_id() * warp_rows;
    const RowRange range = {first_row + warp_first, min(num_rows - warp_first, warp_rows), first_position,
                            sliding_window};
    const RowAddress address = {first_token, num_kv_heads * group_size, head * group_size};
    const Cache cache = {key_cache, value_cache, num_kv_heads};
    const int* block_table = block_tables + size_t(sequence) * max_blocks;
    const Visible visible = block_range.seen_by_any();
    const int first_tile = visible.begin / tile_keys, end_tile = (visible.end + tile_keys - 1) / tile_keys;
    int block_ids = load_block_ids<tile_keys>(block_table, first_tile * tile_keys, visible);
    const auto fetch = [&](int tile) {
        if (tile < end_tile) {
            start_fetch<tile_keys, threads>(shared.stages[tile % num_stages], cache, head, block_ids,
                                            tile * tile_keys, visible, thread_rank());
            // One step early, so that the next copy need not wait for it.
            block_ids = load_block_ids<tile_keys>(block_table, (tile + 1) * tile_keys, visible);
        }
        cp_async_commit();
    };
    start_query(shared.query, query, block_range, address);
    fetch(first_tile);

    Rows<row_tiles, true> rows;
    rows.clear();
    Totals totals;
    if constexpr (has_fixed_splits) totals.clear();
    for (int tile = first_tile; tile < end_tile; ++tile) {
        cp_async_wait<0>();
        // The copies of all threads have landed, and all warps have read the other stage, which is overwritten next.
        __syncthreads();
        fetch(tile + 1);
        attend_at(rows, shared, tile % num_stages, range, tile * tile_keys, scale_log2);
        if constexpr (has_fixed_splits) {
            if ((tile + 1) % split_tiles == 0 || tile + 1 == end_tile) totals.add(rows);
        }
    }
    float inverse[row_tiles][2];
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Merge whole = {rows.max[r][half], has_fixed_splits ? 0.0f : warp_sum<4>(rows.sum[r][half])};
            inverse[r][half] = has_fixed_splits ? totals.merge[r][half].inverse() : whole.inverse();
        }
    }
    write_out(out, range, address, has_fixed_splits ? totals.out : rows.out, inverse);
}
