// What blocks and kernels do together: programmatic dependent launch, counters, a barrier over the grid.
//
// atomicAdd and its like are relaxed: they order nothing else. To publish data use the primitives here, which release
// what the calling thread has seen; put a __syncthreads() before them so that it has seen the whole block's writes.
#pragma once

namespace tinyvllm {

/// Waits until the predecessor in the stream has finished and its writes are visible. Before it, a kernel launched
/// with the `pdl` attribute may read weights and nothing that another kernel writes. No effect before sm_90.
TINYVLLM_DEVICE void pdl_wait() {
#if __CUDA_ARCH__ >= 900
#if defined(TINYVLLM_EMULATOR)
    emulator::pdl_wait();
#else
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#endif
}

/// Lets the successor in the stream start up to its own `pdl_wait`, once every block has said so or ended.
TINYVLLM_DEVICE void pdl_launch_dependents() {
#if __CUDA_ARCH__ >= 900
#if defined(TINYVLLM_EMULATOR)
    emulator::pdl_launch_dependents();
#else
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
#endif
}

/// The value of `*address`, global or shared, which others may be changing with atomics; it orders nothing else.
TINYVLLM_DEVICE uint32_t load_relaxed(const uint32_t* address) {
#if defined(TINYVLLM_EMULATOR)
    return __atomic_load_n(address, __ATOMIC_RELAXED);
#else
    return *static_cast<const volatile uint32_t*>(address);
#endif
}

/// The value of `*address`; what its writer released is visible afterwards.
TINYVLLM_DEVICE uint32_t load_acquire(const uint32_t* address) {
#if defined(TINYVLLM_EMULATOR)
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
#else
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
#endif
}

/// Adds to `*address`, publishing what this thread has seen and seeing what earlier adders published; the old value.
TINYVLLM_DEVICE uint32_t add_acq_rel(uint32_t* address, uint32_t amount) {
#if defined(TINYVLLM_EMULATOR)
    return __atomic_fetch_add(address, amount, __ATOMIC_ACQ_REL);
#else
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(amount) : "memory");
    return old;
#endif
}

/// Lets other threads run; belongs in every loop that waits for memory to change.
TINYVLLM_DEVICE void spin_pause() {
#if defined(TINYVLLM_EMULATOR)
    emulator::yield();
#endif
}

/// Adds `amount` to a counter of finished work, publishing what this thread has seen.
TINYVLLM_DEVICE void counter_add(uint32_t* counter, uint32_t amount) {
#if defined(TINYVLLM_EMULATOR)
    __atomic_fetch_add(counter, amount, __ATOMIC_RELEASE);
#else
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(amount) : "memory");
#endif
}

/// Waits until `*counter` has reached `target` (wrap-around allowed). The blocks that raise it must be resident:
/// launch with `cooperative`.
TINYVLLM_DEVICE void counter_wait(const uint32_t* counter, uint32_t target) {
    while (int32_t(load_acquire(counter) - target) < 0) spin_pause();
}

/// True for the last of `total` callers, who then sees what all the others wrote before they called. The counter,
/// zero before the first use, is zero again afterwards. One thread of a block calls it, after a __syncthreads().
TINYVLLM_DEVICE bool is_last_arrival(uint32_t* counter, uint32_t total) {
    if (add_acq_rel(counter, 1) != total - 1) return false;
    atomicExch(counter, 0u);
    return true;
}

/// A barrier over every thread of the grid, ordering all memory. `state` is one word of global memory, zero before its
/// first use and usable again at once, also by the next launch. Needs a `cooperative` launch: all blocks resident.
TINYVLLM_DEVICE void grid_barrier(uint32_t* state) {
    __syncthreads();  // this block's writes are seen by its thread 0, which publishes them
    if (thread_rank() == 0) {
        // Block 0 adds what flips the top bit once all others have added one: no reset, hence no second barrier.
        const uint32_t num_blocks = gridDim.x * gridDim.y * gridDim.z;
        const bool is_first = blockIdx.x + blockIdx.y + blockIdx.z == 0;
        const uint32_t old = add_acq_rel(state, is_first ? 0x80000000u - (num_blocks - 1) : 1u);
        while (((old ^ load_acquire(state)) & 0x80000000u) == 0) spin_pause();
    }
    __syncthreads();  // nobody goes on before thread 0 has seen every block arrive
}

}  // namespace tinyvllm
