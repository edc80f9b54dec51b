// Reductions over a block of whole warps. `scratch` is 32 floats of shared memory, free for use again on return.
#pragma once

namespace tinyvllm {

/// Sum of `x` over the block, the same bits in every thread. Every thread calls it; whole warps, at most 32.
TINYVLLM_DEVICE float block_sum(float x, float* scratch) {
    const int num_warps = num_threads() / warp_size;
    x = warp_sum(x);
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();  // the partial sums of all warps are in scratch before any warp reads them
    x = warp_sum(lane_id() < num_warps ? scratch[lane_id()] : 0.0f);
    __syncthreads();  // every warp has read scratch before the caller, or the next reduction, writes it
    return x;
}

/// Maximum of `x` over the block. Every thread calls it; whole warps, at most 32.
TINYVLLM_DEVICE float block_max(float x, float* scratch) {
    const int num_warps = num_threads() / warp_size;
    x = warp_max(x);
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();  // the partial maxima of all warps are in scratch before any warp reads them
    x = warp_max(lane_id() < num_warps ? scratch[lane_id()] : -INFINITY);
    __syncthreads();  // every warp has read scratch before the caller, or the next reduction, writes it
    return x;
}

}  // namespace tinyvllm
