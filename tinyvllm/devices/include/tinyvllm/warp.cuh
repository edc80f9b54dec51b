// What the 32 lanes of a warp do together. Shuffles exchange registers and order no memory; __syncwarp() does.
#pragma once

namespace tinyvllm {

constexpr int warp_size = 32;
constexpr uint32_t full_warp = 0xffffffffu;

/// Index of this thread in its block, all dimensions counted.
TINYVLLM_DEVICE int thread_rank() {
    return int((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

/// Number of threads in a block.
TINYVLLM_DEVICE int num_threads() { return int(blockDim.x * blockDim.y * blockDim.z); }

/// This thread's lane, 0 to 31.
TINYVLLM_DEVICE int lane_id() { return thread_rank() % warp_size; }

/// This thread's warp in its block.
TINYVLLM_DEVICE int warp_id() { return thread_rank() / warp_size; }

/// Sum of `x` over each aligned group of `width` lanes, the same bits in every lane. All 32 lanes call it.
template <int width = warp_size>
TINYVLLM_DEVICE float warp_sum(float x) {
#pragma unroll
    for (int offset = width / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(full_warp, x, offset);
    return x;
}

/// Maximum of `x` over each aligned group of `width` lanes. All 32 lanes call it.
template <int width = warp_size>
TINYVLLM_DEVICE float warp_max(float x) {
#pragma unroll
    for (int offset = width / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(full_warp, x, offset));
    return x;
}

/// Sum over this lane and those below it (inclusive scan). All 32 lanes call it.
template <class T>
TINYVLLM_DEVICE T warp_scan(T x) {
    const int lane = lane_id();
#pragma unroll
    for (int offset = 1; offset < warp_size; offset *= 2) {
        const T below = __shfl_up_sync(full_warp, x, offset);
        if (lane >= offset) x += below;
    }
    return x;
}

}  // namespace tinyvllm
