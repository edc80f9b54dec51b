// Vector loads and stores. An address that is not a multiple of the width is a fault, here as on a GPU.
#pragma once

namespace tinyvllm {

/// The 16 bytes at `address`, global or shared, through the caches as usual.
TINYVLLM_DEVICE uint4 load16(const void* address) {
#if defined(TINYVLLM_EMULATOR)
    emulator::check_aligned(address, 16);
#endif
    return *static_cast<const uint4*>(address);
}

/// The 8 bytes at `address`.
TINYVLLM_DEVICE uint2 load8(const void* address) {
#if defined(TINYVLLM_EMULATOR)
    emulator::check_aligned(address, 8);
#endif
    return *static_cast<const uint2*>(address);
}

/// 16 bytes of global memory read once (weights): they take no place in L1, and L2 fetches 256 bytes at a time.
/// Nobody may write them while the kernel runs: the path is not coherent.
TINYVLLM_DEVICE uint4 load16_once(const void* address) {
#if defined(TINYVLLM_EMULATOR)
    return load16(address);
#else
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
#endif
}

/// 16 bytes of global memory that nobody writes while the kernel runs, kept in L1 (shared by neighbours).
TINYVLLM_DEVICE uint4 load16_constant(const void* address) {
#if defined(TINYVLLM_EMULATOR)
    return load16(address);
#else
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
#endif
}

/// Writes 16 bytes at `address`, global or shared.
TINYVLLM_DEVICE void store16(void* address, uint4 value) {
#if defined(TINYVLLM_EMULATOR)
    emulator::check_aligned(address, 16);
#endif
    *static_cast<uint4*>(address) = value;
}

/// Writes 8 bytes at `address`, global or shared.
TINYVLLM_DEVICE void store8(void* address, uint2 value) {
#if defined(TINYVLLM_EMULATOR)
    emulator::check_aligned(address, 8);
#endif
    *static_cast<uint2*>(address) = value;
}

/// Asks for the cache line of a global `address` to be brought to L2; returns at once and reads nothing.
TINYVLLM_DEVICE void prefetch_l2(const void* address) {
#if defined(TINYVLLM_EMULATOR)
    (void)address;
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

#if !defined(TINYVLLM_EMULATOR)
// What instructions that name shared memory take for an address there.
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

/// The launch's dynamic shared memory as an array of `T`, aligned as `T` and to 128 bytes at least: where a warp's copies
/// to it lie otherwise than they do in global memory, each becomes several requests to L2.
template <class T>
TINYVLLM_DEVICE T* dynamic_shared() {
#if defined(TINYVLLM_EMULATOR)
    return static_cast<T*>(emulator::dynamic_shared());
#else
    extern __shared__ __align__(alignof(T) > 128 ? alignof(T) : 128) unsigned char tinyvllm_dynamic_shared[];
    return reinterpret_cast<T*>(tinyvllm_dynamic_shared);
#endif
}

/// Stops the kernel with an error if `condition` is false; the emulator says which block, thread and line.
TINYVLLM_DEVICE void device_assert(bool condition) {
#if defined(TINYVLLM_EMULATOR)
    if (!condition) emulator::fail_assert();
#else
    if (!condition) __trap();
#endif
}

}  // namespace tinyvllm
