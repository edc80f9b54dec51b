// Attention of one query token a sequence over the paged cache (flash decoding: Dao et al. 2023).
//   Formula    out[h] = sum over s of softmax(scale * q[h] . k[s])[s] v[s], s the last `sliding_window` positions or all
//   Reference  tinyvllm/reference/paged_attention.py
//   Shapes     out, query [T, H, D]; caches [num_blocks, K, block_size, D] bfloat16; block_tables [B, M],
//              context_lens [B], cu_seqlens_q [B+1] int32. Without cu_seqlens_q the token of sequence b is row b; with
//              it, it is row cu_seqlens_q[b], and a sequence with more tokens, or none, is left to other kernels
//   Mapping    an item is a sequence and a KV head; its H/K query heads are rows of one mma tile. A tile is
//              NUM_WARPS * WARP_KEYS positions, WARP_KEYS for each warp, which loads them into stages of its own. The
//              tiles of all items lie in a row, and each block gets an equal share: the grid is fixed, the division is
//              computed here from context_lens. Parts of an item that several blocks share go to the workspace, and
//              the block that finishes last adds them up, always in the same order.
//              SPLIT_TILES > 0 (batch_invariant): an item is cut at fixed absolute positions instead, and every cut
//              is merged by itself, so that a row's bits do not depend on the other rows.
//   Numerics   float32 scores, softmax and sums; weights rounded to bfloat16 for the second product
//   Traffic    4 D bytes a KV head and visible position; bandwidth. With little work, latency: three barriers an item
#include "attention_tile.cuh"

constexpr int num_warps = NUM_WARPS, warp_keys = WARP_KEYS, num_stages = NUM_STAGES;
constexpr int threads = 32 * num_warps, tile_keys = num_warps * warp_keys;
constexpr bool has_fixed_splits = SPLIT_TILES > 0;
constexpr int chunk_tiles = has_fixed_splits ? SPLIT_TILES : 1;  // a chunk is what one block gets at least
constexpr int chunk_keys = chunk_tiles * tile_keys;
// A block has at most num_stages tiles in flight: fewer than that each, and merging costs more than is won.
constexpr int min_chunks = MIN_CHUNKS;

/// What a block, or a warp, knows of an item: sums of weighted values, and the softmax's maximum and sum by row.
struct Part {
    float out[group_size][head_dim];
    float max[group_size], sum[group_size];
};

struct Shared {
    KeyValueTile<warp_keys> stages[num_warps][num_stages];
    Part parts[num_warps];
    int chunk_ends[MAX_BATCH];  // chunks of one KV head of the sequences up to and with this one
    Visible visible[MAX_BATCH];
    int warp_chunks[num_warps];
    bool is_last;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same size");

/// How the chunks are dealt out, in order: `larger` blocks get quotient + 1 of them, the others quotient.
struct Shares {
    int quotient, larger;

    TINYVLLM_DEVICE Shares(int num_chunks, int num_blocks) {
        const int used = min(num_blocks, max(1, num_chunks / min_chunks));
        quotient = num_chunks / used;
        larger = num_chunks % used;
        if (int(blockIdx.x) >= used) quotient = larger = 0;  // asks for its own share only, which is none
    }
    TINYVLLM_DEVICE int begin(int block) const { return block * quotient + min(block, larger); }
    TINYVLLM_DEVICE int owner(int chunk) const {
        const int in_larger = larger * (quotient + 1);
        return chunk < in_larger ? chunk / (quotient + 1) : larger + (chunk - in_larger) / quotient;
    }
};

struct Sizes {
    int num_sequences, num_kv_heads, max_blocks;
};

/// One item, or the part of it between two chunks; chunks are counted over all items.
struct Piece {
    int sequence, head;
    int item_begin, item_end;  // chunks of the item
    int begin, end;            // chunks of the piece
    int tile, tile_end;        // positions, in tiles
    Visible visible;
};

TINYVLLM_DEVICE int num_chunks_of(Visible visible) {
    // One for a context of none too: somebody has to write its zeros.
    return max(1, (visible.end + chunk_keys - 1) / chunk_keys - visible.begin / chunk_keys);
}

/// Writes chunk_ends and visible; returns how many chunks there are of one KV head.
TINYVLLM_DEVICE int make_plan(Shared& shared, const int* context_lens, const int* cu_seqlens_q, int num_sequences,
                              int sliding_window) {
    const int thread = thread_rank(), run = (num_sequences + threads - 1) / threads;  // neighbours, for one scan
    int num_chunks = 0;
#pragma unroll 4
    for (int i = 0; i < run; ++i) {
        const int b = thread * run + i;
        if (b >= num_sequences) break;
        const int length = context_lens[b];
        const Visible visible = {sliding_window > 0 ? max(0, length - sliding_window) : 0, length};
        const bool is_ours = cu_seqlens_q == nullptr || cu_seqlens_q[b + 1] - cu_seqlens_q[b] == 1;
        num_chunks += is_ours ? num_chunks_of(visible) : 0;
        shared.visible[b] = visible;
        shared.chunk_ends[b] = num_chunks;
    }
    const int scanned = warp_scan(num_chunks);
    if (lane_id() == 31) shared.warp_chunks[warp_id()] = scanned;
    __syncthreads();  // the sums of all warps are there before any thread adds those before its own
    int before = scanned - num_chunks;
    for (int w = 0; w < warp_id(); ++w) before += shared.warp_chunks[w];
    for (int i = 0; i < run && thread * run + i < num_sequences; ++i) shared.chunk_ends[thread * run + i] += before;
    __syncthreads();  // the plan is complete before anybody reads it
    return shared.chunk_ends[num_sequences - 1];
}

/// The first sequence with chunks beyond `chunk`.
TINYVLLM_DEVICE int find_sequence(const Shared& shared, const Sizes& sizes, int chunk) {
    int low = 0, high = sizes.num_sequences - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (shared.chunk_ends[middle] * sizes.num_kv_heads <= chunk)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/// The piece from `begin` on, before `end`; `sequence` is where to look for it, or before.
TINYVLLM_DEVICE Piece piece_at(const Shared& shared, const Sizes& sizes, int sequence, int begin, int end) {
    while (shared.chunk_ends[sequence] * sizes.num_kv_heads <= begin) ++sequence;
    Piece piece;
    piece.sequence = sequence;
    piece.visible = shared.visible[sequence];
    const int before = sequence == 0 ? 0 : shared.chunk_ends[sequence - 1];
    const int num_chunks = shared.chunk_ends[sequence] - before;
    piece.head = (begin - before * sizes.num_kv_heads) / num_chunks;
    piece.item_begin = before * sizes.num_kv_heads + piece.head * num_chunks;
    piece.item_end = piece.item_begin + num_chunks;
    piece.begin = begin;
    piece.end = has_fixed_splits ? begin + 1 : min(end, piece.item_end);
    const int first_chunk = piece.visible.begin / chunk_keys - piece.item_begin;  // absolute, of this item's chunk 0
    piece.tile = max((first_chunk + piece.begin) * chunk_tiles, piece.visible.begin / tile_keys);
    piece.tile_end = min((first_chunk + piece.end) * chunk_tiles, (piece.visible.end + tile_keys - 1) / tile_keys);
    return piece;
}

/// Walks over the tiles of a block's share, ahead of the computation.
struct Fetcher {
    const Shared& shared;
    const Sizes& sizes;
    const Cache& cache;
    const int* block_tables;
    Piece piece;
    int end;
    int block_ids;  // of the next tile, read one step early so that the copy need not wait for it

    TINYVLLM_DEVICE int position() const { return piece.tile * tile_keys + warp_id() * warp_keys; }

    /// Goes to the first tile from `piece.tile` on that there is; no tile is left when `piece.tile == piece.tile_end`.
    TINYVLLM_DEVICE void settle() {
        while (piece.tile >= piece.tile_end && piece.end < end)
            piece = piece_at(shared, sizes, piece.sequence, piece.end, end);
        if (piece.tile >= piece.tile_end) return;
        const int* block_table = block_tables + size_t(piece.sequence) * sizes.max_blocks;
        block_ids = load_block_ids<warp_keys>(block_table, position(), piece.visible);
    }

    /// Starts the copy of this warp's keys of the next tile, if there is one; a group of its own in any case.
    TINYVLLM_DEVICE void fetch(KeyValueTile<warp_keys>& stage) {
        if (piece.tile < piece.tile_end) {
            start_fetch<warp_keys, 32>(stage, cache, piece.head, block_ids, position(), piece.visible, lane_id());
            ++piece.tile;
            settle();
        }
        cp_async_commit();
    }
};

/// The fragments of the group's rows; rows without a head, and the upper eight, are zeros.
TINYVLLM_DEVICE void read_query(uint32_t (&fragments)[head_dim / 16][4], const bf16* query) {
    const int row = lane_id() / 4, column = lane_id() % 4 * 2;
#pragma unroll
    for (int k = 0; k < head_dim / 16; ++k) {
        const bf16* from = query + row * head_dim + k * 16 + column;
        fragments[k][0] = row < group_size ? *reinterpret_cast<const uint32_t*>(from) : 0;
        fragments[k][1] = 0;
        fragments[k][2] = row < group_size ? *reinterpret_cast<const uint32_t*>(from + 8) : 0;
        fragments[k][3] = 0;
    }
}

TINYVLLM_DEVICE void store_part(Part& part, const Rows<1, false>& rows) {
    const int row = lane_id() / 4, column = lane_id() % 4 * 2;
    const float sum = warp_sum<4>(rows.sum[0][0]);
    if (row >= group_size) return;
#pragma unroll
    for (int n = 0; n < head_dim / 8; ++n) {
        part.out[row][n * 8 + column] = rows.out[0][n][0];
        part.out[row][n * 8 + column + 1] = rows.out[0][n][1];
    }
    if (column == 0) part.max[row] = rows.max[0][0], part.sum[row] = sum;
}

/// Two neighbouring values of a row, merged over parts 0 .. num_parts - 1 in order.
struct MergedPair {
    Merge merge;
    float2 value;
};

template <class PartAt>
TINYVLLM_DEVICE MergedPair merge_parts(int num_parts, int row, int column, PartAt part_at) {
    MergedPair result = {{}, {0.0f, 0.0f}};
#pragma unroll 4
    for (int i = 0; i < num_parts; ++i) {
        const Part& part = part_at(i);
        const float2 value = *reinterpret_cast<const float2*>(&part.out[row][column]);
        const float2 factors = result.merge.add(part.max[row], part.sum[row]);
        result.value = make_float2(merged(result.value.x, value.x, factors), merged(result.value.y, value.y, factors));
    }
    return result;
}

TINYVLLM_DEVICE void write_out(bf16* out, int row, int column, const MergedPair& pair) {
    const float inverse = pair.merge.inverse();
    *reinterpret_cast<uint32_t*>(out + row * head_dim + column) =
        pack_bf16(pair.value.x * inverse, pair.value.y * inverse);
}

/// Merges what the warps have of the piece and writes it: to `out` if the piece is the whole item, else to the
/// workspace, from where the last of the item's blocks merges it.
TINYVLLM_DEVICE void finish_piece(Shared& shared, const Piece& piece, const Rows<1, false>& rows, const Shares& shares,
                                  Part* workspace, uint32_t* counters, int num_kv_heads, bf16* out) {
    constexpr int pairs_per_row = head_dim / 2, num_pairs = group_size * pairs_per_row;
    const bool is_whole = piece.begin == piece.item_begin && piece.end == piece.item_end;
    // Where the parts of an item lie. With equal shares, a block begins in at most one item that it does not finish,
    // and ends in at most one other: two places a block.
    const int first_owner = has_fixed_splits ? 0 : shares.owner(piece.item_begin);
    const auto place = [&](int i) {
        return has_fixed_splits ? piece.item_begin + i : 2 * (first_owner + i) + (i == 0 ? 1 : 0);
    };
    const int own = has_fixed_splits ? piece.begin - piece.item_begin : int(blockIdx.x) - first_owner;

    store_part(shared.parts[warp_id()], rows);
    __syncthreads();  // the parts of all warps are there before any thread merges them
    for (int i = thread_rank(); i < num_pairs; i += threads) {
        const int row = i / pairs_per_row, column = i % pairs_per_row * 2;
        const auto warp_part = [&](int w) -> const Part& { return shared.parts[w]; };
        const MergedPair pair = merge_parts(num_warps, row, column, warp_part);
        if (is_whole) {
            write_out(out, row, column, pair);
            continue;
        }
        Part& part = workspace[place(own)];
        *reinterpret_cast<float2*>(&part.out[row][column]) = pair.value;
        if (column == 0) part.max[row] = pair.merge.max, part.sum[row] = pair.merge.sum;
    }
    // Everybody has read the warps' parts before the next piece overwrites them, and this block's part is written
    // before thread 0 says so.
    __syncthreads();
    if (is_whole) return;
    const int num_parts = has_fixed_splits ? piece.item_end - piece.item_begin
                                           : shares.owner(piece.item_end - 1) - first_owner + 1;
    if (thread_rank() == 0)
        shared.is_last = is_last_arrival(&counters[piece.sequence * num_kv_heads + piece.head], num_parts);
    __syncthreads();  // thread 0 has seen the other blocks' parts, and its answer is there
    if (!shared.is_last) return;
    for (int i = thread_rank(); i < num_pairs; i += threads) {
        const int row = i / pairs_per_row, column = i % pairs_per_row * 2;
        const auto block_part = [&](int p) -> const Part& { return workspace[place(p)]; };
        write_out(out, row, column, merge_parts(num_parts, row, column, block_part));
    }
}

extern "C" __global__ void __launch_bounds__(threads, 1)
    attention_decode(bf16* out, const bf16* query, const bf16* key_cache, const bf16* value_cache,
                     const int* block_tables, const int* context_lens, const int* cu_seqlens_q, float* workspace,
                     uint32_t* counters, int num_sequences, int num_kv_heads, int max_blocks, int sliding_window,
                     float scale_log2, int is_plan_older) {
    Shared& shared = *dynamic_shared<Shared>();
    const Sizes sizes = {num_sequences, num_kv_heads, max_blocks};
    const Cache cache = {key_cache, value_cache, num_kv_heads};
    pdl_launch_dependents();
    if (!is_plan_older) pdl_wait();  // lengths and ends are the predecessor's
    const int num_chunks =
        make_plan(shared, context_lens, cu_seqlens_q, num_sequences, sliding_window) * num_kv_heads;
    pdl_wait();  // queries, the last keys and values, and the workspace are the predecessors'

    const Shares shares(num_chunks, gridDim.x);
    const int begin = shares.begin(blockIdx.x), end = shares.begin(blockIdx.x + 1);
    if (begin >= end) return;
    Piece piece = piece_at(shared, sizes, find_sequence(shared, sizes, begin), begin, end);
    Fetcher fetcher = {shared, sizes, cache, block_tables, piece, end, 0};
    fetcher.settle();
    auto& stages = shared.stages[warp_id()];
    for (int s = 0; s < num_stages - 1; ++s) fetcher.fetch(stages[s]);

    int step = 0;
    while (true) {
        const int token = cu_seqlens_q == nullptr ? piece.sequence : cu_seqlens_q[piece.sequence];
        const size_t row = (size_t(token) * num_kv_heads + piece.head) * group_size * head_dim;
        uint32_t fragments[head_dim / 16][4];
        read_query(fragments, query + row);
        const auto load_query = [&](uint32_t(&a)[4], int, int k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = fragments[k][i];
        };
        Rows<1, false> rows;
        rows.clear();
        for (int tile = piece.tile; tile < piece.tile_end; ++tile, ++step) {
            cp_async_wait<num_stages - 2>();
            // All lanes' copies of this step's stage have landed, and all lanes have read the stage of the step before,
            // which the next fetch overwrites.
            __syncwarp();
            fetcher.fetch(stages[(step + num_stages - 1) % num_stages]);
            const int position = tile * tile_keys + warp_id() * warp_keys;
            const Span span = {piece.visible.begin - position, piece.visible.end - position};
            if (span.high <= 0 || span.low >= warp_keys) continue;
            const bool is_masked = span.low > 0 || span.high < warp_keys;
            attend<warp_keys, 1, false>(rows, stages[step % num_stages], load_query, is_masked,
                                        [&](int, int) { return span; }, scale_log2);
        }
        finish_piece(shared, piece, rows, shares, reinterpret_cast<Part*>(workspace), counters, num_kv_heads,
                     out + row);
        if (piece.end >= end) break;
        piece = piece_at(shared, sizes, piece.sequence, piece.end, end);
    }
}
