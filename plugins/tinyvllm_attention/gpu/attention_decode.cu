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
//              the block that finishes last adds them up, always in the same order. With few items, each is cut into
//              chunks of so many tiles that every chunk has a block of its own.
//              SPLIT_TILES > 0 (batch_invariant): an item is cut at fixed absolute positions instead, and every cut
//              is merged by itself, so that a row's bits do not depend on the other rows.
//   Numerics   float32 scores, softmax and sums; weights rounded to bfloat16 for the second product
//   Traffic    4 D bytes a KV head and visible position; bandwidth. With little work, latency: three barriers an item
#include "attention_tile.cuh"

constexpr int num_warps = NUM_WARPS, warp_keys = WARP_KEYS, num_stages = NUM_STAGES;
constexpr int threads = 32 * num_warps, tile_keys = num_warps * warp_keys;
constexpr bool has_fixed_splits = SPLIT_TILES > 0;
constexpr int merge_at_once = 16;  // parts of other blocks, read together: each trip to L2 takes most of a microsecond
constexpr int min_tiles = MIN_TILES;  // of an equal share, if there are as many: with fewer, merging costs too much

/// What a block, or a warp, knows of an item: sums of weighted values, and the softmax's maximum and sum by row.
struct Part {
    float out[group_size][head_dim];
    float2 softmax[group_size];
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

    TINYVLLM_DEVICE Shares(int num_chunks, int min_chunks, int num_blocks) {
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

/// A chunk is so many tiles, at absolute positions: what one block gets at least. Cut, every chunk is merged by itself.
struct Cut {
    bool is_cut;
    int chunk_tiles;
};

/// One item, or the part of it between two chunks; chunks are counted over all items.
struct Piece {
    int sequence, head;
    int item_begin, item_end;  // chunks of the item
    int begin, end;            // chunks of the piece
    int tile, tile_end;        // positions, in tiles
    Visible visible;
};

/// What the plan is made from.
struct Lengths {
    const int *context_lens, *cu_seqlens_q;
    int sliding_window;

    TINYVLLM_DEVICE Visible visible(int b) const {
        const int length = context_lens[b];
        return {sliding_window > 0 ? max(0, length - sliding_window) : 0, length};
    }

    TINYVLLM_DEVICE int num_chunks(int b, Visible visible, int chunk_keys) const {
        if (cu_seqlens_q != nullptr && cu_seqlens_q[b + 1] - cu_seqlens_q[b] != 1) return 0;
        // One for a context of none too: somebody has to write its zeros.
        return max(1, (visible.end + chunk_keys - 1) / chunk_keys - visible.begin / chunk_keys);
    }
};

/// With at least four blocks for each item, the smallest chunks for which there are blocks enough: the first and the
/// last chunk of an item may be cut off, which adds up to two for each.
TINYVLLM_DEVICE Cut choose_cut(const Lengths& lengths, int num_sequences, int num_kv_heads) {
    if (has_fixed_splits) return {true, SPLIT_TILES};
    const int num_blocks = gridDim.x, num_items = num_sequences * num_kv_heads;
    if (4 * num_items > num_blocks) return {false, 1};
    int num_tiles = 0;
    for (int b = lane_id(); b < num_sequences; b += 32)
        num_tiles += lengths.num_chunks(b, lengths.visible(b), tile_keys);
    num_tiles = __shfl_sync(full_warp, warp_scan(num_tiles), 31) * num_kv_heads;
    const int num_free = num_blocks - 2 * num_items;
    return {true, max(1, (num_tiles + num_free - 1) / num_free)};
}

/// Writes chunk_ends and visible; returns how many chunks there are of one KV head.
TINYVLLM_DEVICE int make_plan(Shared& shared, const Lengths& lengths, int num_sequences, int chunk_keys) {
    const int thread = thread_rank(), run = (num_sequences + threads - 1) / threads;  // neighbours, for one scan
    int num_chunks = 0;
#pragma unroll 4
    for (int i = 0; i < run; ++i) {
        const int b = thread * run + i;
        if (b >= num_sequences) break;
        const Visible visible = lengths.visible(b);
        num_chunks += lengths.num_chunks(b, visible, chunk_keys);
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
TINYVLLM_DEVICE Piece piece_at(const Shared& shared, const Sizes& sizes, const Cut& cut, int sequence, int begin,
                               int end) {
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
    piece.end = cut.is_cut ? begin + 1 : min(end, piece.item_end);
    // Absolute, of this item's chunk 0.
    const int first_chunk = piece.visible.begin / (cut.chunk_tiles * tile_keys) - piece.item_begin;
    piece.tile = max((first_chunk + piece.begin) * cut.chunk_tiles, piece.visible.begin / tile_keys);
    piece.tile_end = min((first_chunk + piece.end) * cut.chunk_tiles, (piece.visible.end + tile_keys - 1) / tile_keys);
    return piece;
}

/// This warp's keys of a tile.
struct Tile {
    bool is_there;
    int head, block_ids, position;
    Visible visible;
};

/// Walks over the tiles of a block's share, ahead of the computation.
struct Fetcher {
    const Shared& shared;
    const Sizes& sizes;
    const Cut& cut;
    const Cache& cache;
    const int* block_tables;
    Piece piece;
    int end;
    int block_ids;  // of the next tile, read one step early so that the copy need not wait for it

    TINYVLLM_DEVICE int position() const { return piece.tile * tile_keys + warp_id() * warp_keys; }

    /// Goes to the first tile from `piece.tile` on that there is; no tile is left when `piece.tile == piece.tile_end`.
    TINYVLLM_DEVICE void settle() {
        while (piece.tile >= piece.tile_end && piece.end < end)
            piece = piece_at(shared, sizes, cut, piece.sequence, piece.end, end);
        if (piece.tile >= piece.tile_end) return;
        const int* block_table = block_tables + size_t(piece.sequence) * sizes.max_blocks;
        block_ids = load_block_ids<warp_keys>(block_table, position(), piece.visible);
    }

    /// The next tile, if there is one; goes on to the one after it.
    TINYVLLM_DEVICE Tile take() {
        const Tile tile = {piece.tile < piece.tile_end, piece.head, block_ids, position(), piece.visible};
        if (tile.is_there) {
            ++piece.tile;
            settle();
        }
        return tile;
    }

    /// Starts the copy of this warp's keys of a tile; a group of its own in any case.
    TINYVLLM_DEVICE void fetch(KeyValueTile<warp_keys>& stage, const Tile& tile) const {
        if (tile.is_there)
            start_fetch<warp_keys, 32>(stage, cache, tile.head, tile.block_ids, tile.position, tile.visible, lane_id());
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
    if (column == 0) part.softmax[row] = make_float2(rows.max[0][0], sum);
}

/// Two neighbouring values of a row, merged over parts 0 .. num_parts - 1 in order; `at_once` of them are read before
/// the first is used.
struct MergedPair {
    Merge merge;
    float2 value;
};

template <int at_once, class PartAt>
TINYVLLM_DEVICE MergedPair merge_parts(int num_parts, int row, int column, PartAt part_at) {
    MergedPair result = {{}, {0.0f, 0.0f}};
    for (int first = 0; first < num_parts; first += at_once) {
        float2 values[at_once], softmax[at_once];
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
            const Part& part = part_at(min(first + i, num_parts - 1));
            values[i] = *reinterpret_cast<const float2*>(&part.out[row][column]);
            softmax[i] = part.softmax[row];
        }
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
            if (first + i >= num_parts) break;
            const float2 factors = result.merge.add(softmax[i].x, softmax[i].y);
            result.value = make_float2(merged(result.value.x, values[i].x, factors),
                                       merged(result.value.y, values[i].y, factors));
        }
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
                                  bool is_cut, Part* workspace, uint32_t* counters, int num_kv_heads, bf16* out) {
    constexpr int pairs_per_row = head_dim / 2, num_pairs = group_size * pairs_per_row;
    const bool is_whole = piece.begin == piece.item_begin && piece.end == piece.item_end;
    // Where the parts of an item lie. With equal shares, a block begins in at most one item that it does not finish,
    // and ends in at most one other: two places a block.
    const int first_owner = is_cut ? 0 : shares.owner(piece.item_begin);
    const auto place = [&](int i) {
        return is_cut ? piece.item_begin + i : 2 * (first_owner + i) + (i == 0 ? 1 : 0);
    };
    const int own = is_cut ? piece.begin - piece.item_begin : int(blockIdx.x) - first_owner;

    store_part(shared.parts[warp_id()], rows);
    __syncthreads();  // the parts of all warps are there before any thread merges them
    for (int i = thread_rank(); i < num_pairs; i += threads) {
        const int row = i / pairs_per_row, column = i % pairs_per_row * 2;
        const auto warp_part = [&](int w) -> const Part& { return shared.parts[w]; };
        const MergedPair pair = merge_parts<num_warps>(num_warps, row, column, warp_part);
        if (is_whole) {
            write_out(out, row, column, pair);
            continue;
        }
        Part& part = workspace[place(own)];
        *reinterpret_cast<float2*>(&part.out[row][column]) = pair.value;
        if (column == 0) part.softmax[row] = make_float2(pair.merge.max, pair.merge.sum);
    }
    // Everybody has read the warps' parts before the next piece overwrites them, and this block's part is written
    // before thread 0 says so.
    __syncthreads();
    if (is_whole) return;
    const int num_parts = is_cut ? piece.item_end - piece.item_begin
                                 : shares.owner(piece.item_end - 1) - first_owner + 1;
    if (thread_rank() == 0)
        shared.is_last = is_last_arrival(&counters[piece.sequence * num_kv_heads + piece.head], num_parts);
    __syncthreads();  // thread 0 has seen the other blocks' parts, and its answer is there
    if (!shared.is_last) return;
    for (int i = thread_rank(); i < num_pairs; i += threads) {
        const int row = i / pairs_per_row, column = i % pairs_per_row * 2;
        const auto block_part = [&](int p) -> const Part& { return workspace[place(p)]; };
        write_out(out, row, column, merge_parts<merge_at_once>(num_parts, row, column, block_part));
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
    const Lengths lengths = {context_lens, cu_seqlens_q, sliding_window};
    if (!is_plan_older) pdl_wait();  // lengths and ends may be new
    pdl_launch_dependents();         // only now: whoever starts after this kernel takes them for older
    const Cut cut = choose_cut(lengths, num_sequences, num_kv_heads);
    const int num_chunks = make_plan(shared, lengths, num_sequences, cut.chunk_tiles * tile_keys) * num_kv_heads;
    const Shares shares(num_chunks, cut.is_cut ? 1 : min_tiles, gridDim.x);
    const int begin = shares.begin(blockIdx.x), end = shares.begin(blockIdx.x + 1);
    if (begin >= end) {
        if (blockIdx.x == 0) pdl_wait();  // with no work at all, this kernel still ends after its predecessor
        return;
    }
    Piece piece = piece_at(shared, sizes, cut, find_sequence(shared, sizes, begin), begin, end);
    Fetcher fetcher = {shared, sizes, cut, cache, block_tables, piece, end, 0};
    fetcher.settle();
    Tile first[num_stages];  // what can be known of them before the wait
#pragma unroll
    for (int s = 0; s < num_stages; ++s) first[s] = fetcher.take();
    if (is_plan_older) pdl_wait();  // queries, the last keys and values, and the workspace are the predecessors'
    auto& stages = shared.stages[warp_id()];
#pragma unroll
    for (int s = 0; s < num_stages; ++s) fetcher.fetch(stages[s], first[s]);

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
            const KeyValueTile<warp_keys>& stage = stages[step % num_stages];
            cp_async_wait<num_stages - 1>();  // this lane's copies of the stage have landed
            __syncwarp();                     // and those of all lanes
            const int position = tile * tile_keys + warp_id() * warp_keys;
            const Span span = {piece.visible.begin - position, piece.visible.end - position};
            const bool is_masked = span.low > 0 || span.high < warp_keys;
            if (span.high > 0 && span.low < warp_keys)
                attend<warp_keys, 1, false>(rows, stage, load_query, is_masked, [&](int, int) { return span; },
                                            scale_log2);
            __syncwarp();  // all lanes have read the stage before the next copy overwrites it
            fetcher.fetch(stages[step % num_stages], fetcher.take());
        }
        finish_piece(shared, piece, rows, shares, cut.is_cut, reinterpret_cast<Part*>(workspace), counters,
                     num_kv_heads, out + row);
        if (piece.end >= end) break;
        piece = piece_at(shared, sizes, cut, piece.sequence, piece.end, end);
    }
}
