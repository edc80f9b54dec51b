// What the fused projections share: y = norm(x) W^T in tiles of output rows, each finished by an epilogue.
//
// Three cores compute the sums, with one interface: `gemv_core.cuh` for one row of x (BATCH_ROWS 1), on the ordinary
// arithmetic units, on the tensor cores `gemm_small_core.cuh` for up to 32 a block (BATCH_ROWS 8, 16 or 32) and
// `gemm_large_core.cuh` for more (64 or 128). The last two take a sum in the same order.
// A tile is two runs of `tile_pairs` neighbouring weight rows, low and high; the thread that finishes a pair has both
// sums at hand, so that a rotation (rows i and i + D/2) or a gate and its up need no exchange.
//
// All load the first weights *before* they wait for the predecessor: the loads run while it does. For one row the
// norm is folded in: x times the norm's weight goes in, 1 / rms multiplies the sum.
//
// Defines: SIZE_K (length of a row of x), BATCH_ROWS, THREADS, MIN_BLOCKS (per SM), NUM_STAGES (of the
// ring), SHARED_BYTES, GUARD_ROWS (1 if the last tile may hang over), and of each core what it says there.
// The kernel's source defines HAS_NORM before it includes this file.
#pragma once
#include "tinyvllm/shared/vectors.cuh"

/// Blocks of an SM that the registers must allow. MIN_BLOCKS is counted for sm_90: elsewhere the compiler takes more
/// registers for the same loads in flight, and would spill.
constexpr int min_blocks = __CUDA_ARCH__ / 100 == 9 || MIN_BLOCKS == 1 ? MIN_BLOCKS : MIN_BLOCKS - 1;

/// This thread's lane and warp. Blocks are one-dimensional here: fewer instructions before the first load than the
/// prelude's general ones.
TINYVLLM_DEVICE int block_lane() { return int(threadIdx.x % 32u); }
TINYVLLM_DEVICE int block_warp() { return int(threadIdx.x / 32u); }

/// What goes in: x [num_rows, K]; the norm's weight [K] and eps where HAS_NORM; scratch memory where SPLIT > 1.
struct Input {
    const bf16* x;
    int num_rows;
    const bf16* norm = nullptr;
    float eps = 0.0f;
    float* workspace = nullptr;
    uint32_t* counters = nullptr;
};

/// The first weight row of either run of a tile.
struct TileRows {
    int low, high;
};

/// One pair of outputs: its weight rows, the row of x, and which of a thread's rows of x that is.
struct Place {
    int low_row, high_row, row_of_x, which;
};

// An Epilogue has, all called by the thread that finishes a pair:
//   struct Token;  Token token(int row_of_x)           reads what all outputs of a row need (a position); after the wait
//   struct Early;  Early early(Token, Place)           reads what one pair needs besides the sums, before they are there
//   void store(Token, Early, Place, float low, float high)

/// Tiles of neighbouring rows, for outputs that do not pair up. `tile_pairs` is the core's.
template <int tile_pairs>
TINYVLLM_DEVICE TileRows neighbouring_rows(int tile) {
    return TileRows{tile * 2 * tile_pairs, tile * 2 * tile_pairs + tile_pairs};
}

#if BATCH_ROWS == 1
#include "gemv_core.cuh"
#elif BATCH_ROWS <= 32
#include "gemm_small_core.cuh"
#else
#include "gemm_large_core.cuh"
#endif
