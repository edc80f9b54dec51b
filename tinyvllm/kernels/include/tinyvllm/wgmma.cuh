// Hopper's tensor core instruction, by which four warps multiply from shared memory; TINYVLLM_HAS_WGMMA where there is one.
//
// Its sums have the bits of `mma_bf16` in the same order of K, on every input tried: batch-invariance builds on that, and
// test_projections holds it on a card. The emulator has none; a kernel that uses it has a twin by `mma_bf16`.
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(TINYVLLM_EMULATOR)
#define TINYVLLM_HAS_WGMMA 1

namespace tinyvllm {

/// Describes rows of 64 bfloat16 values, of which vector v of row r lies at v ^ r % 8, from an address that is a multiple
/// of 1024 on. Two more are the next 16 of K.
TINYVLLM_DEVICE uint64_t wgmma_rows(const void* rows) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(rows));
    constexpr uint64_t swizzle_128_bytes = 1, group_bytes = 1024;  // a group is eight rows
    return (address & 0x3ffff) / 16 | uint64_t(1) << 16 | group_bytes / 16 << 32 | swizzle_128_bytes << 62;
}

/// What this thread has put into shared memory is seen by the tensor core, after a barrier that of all threads. Without
/// the state space, the fence waited for all copies under way.
TINYVLLM_DEVICE void wgmma_see_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Before the first product, and wherever other instructions have touched the sums.
TINYVLLM_DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Closes a group of products.
TINYVLLM_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most the `pending` youngest groups are under way.
template <int pending>
TINYVLLM_DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/// The sums are complete, after wgmma_wait<0>(): the compiler reads none of them earlier.
template <int num_tiles>
TINYVLLM_DEVICE void wgmma_hold(float (&d)[num_tiles][4]) {
#pragma unroll
    for (int j = 0; j < num_tiles; ++j)
        asm volatile("" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])::"memory");
}

#define TINYVLLM_D4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define TINYVLLM_D16(j) TINYVLLM_D4(j), TINYVLLM_D4(j + 1), TINYVLLM_D4(j + 2), TINYVLLM_D4(j + 3)

/// Starts d += A B for 64 rows of A and 64 of B over 16 of K. A warp has 16 rows of A, in the fragments of `mma_bf16`.
TINYVLLM_DEVICE void wgmma_bf16(float (&d)[8][4], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, "
        "1, 0, 0;"
        : TINYVLLM_D16(0), TINYVLLM_D16(4)
        : "l"(a), "l"(b));
}

/// As above, for 128 rows of B.
TINYVLLM_DEVICE void wgmma_bf16(float (&d)[16][4], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, "
        "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, "
        "%57, %58, %59, %60, %61, %62, %63}, %64, %65, 1, 1, 1, 0, 0;"
        : TINYVLLM_D16(0), TINYVLLM_D16(4), TINYVLLM_D16(8), TINYVLLM_D16(12)
        : "l"(a), "l"(b));
}

#undef TINYVLLM_D16
#undef TINYVLLM_D4

}  // namespace tinyvllm

#endif
