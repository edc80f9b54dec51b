// Hopper's tensor core instruction, by which four warps multiply from shared memory; TINYVLLM_HAS_WGMMA where there is one.
//
// Its sums have the bits of `mma_bf16` in the same order of K, on every input tried: batch-invariance builds on that, and
// test_projections holds it on a card. The emulator's have not, so it takes the twin by `mma_bf16` where bits matter. There
// the sums of a product under way are the complements of what they will be, and NaN in the end if the operands have changed
// before the wait.
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(TINYVLLM_EMULATOR)
#if !defined(TINYVLLM_EMULATOR)
#define TINYVLLM_HAS_WGMMA 1
#endif

namespace tinyvllm {

/// Describes rows of 64 bfloat16 values, of which vector v of row r lies at v ^ r % 8, from an address that is a multiple
/// of 1024 on. Two more are the next 16 of K.
TINYVLLM_DEVICE uint64_t wgmma_rows(const void* rows) {
#if defined(TINYVLLM_EMULATOR)
    emulator::check_aligned(rows, 1024);
    return reinterpret_cast<uintptr_t>(rows) / 16;
#else
    const uint32_t address = shared_address(rows);
    constexpr uint64_t swizzle_128_bytes = 1, group_bytes = 1024;  // a group is eight rows
    return (address & 0x3ffff) / 16 | uint64_t(1) << 16 | group_bytes / 16 << 32 | swizzle_128_bytes << 62;
#endif
}

/// What this thread has put into shared memory is seen by the tensor core, after a barrier that of all threads. Without
/// the state space, the fence waited for all copies under way.
TINYVLLM_DEVICE void wgmma_see_shared() {
#if !defined(TINYVLLM_EMULATOR)
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// Before the first product, and wherever other instructions have touched the sums.
TINYVLLM_DEVICE void wgmma_begin() {
#if defined(TINYVLLM_EMULATOR)
    emulator::wgmma_begin();
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

/// Closes a group of products.
TINYVLLM_DEVICE void wgmma_commit() {
#if defined(TINYVLLM_EMULATOR)
    emulator::wgmma_commit();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/// Waits until at most the `pending` youngest groups are under way.
template <int pending>
TINYVLLM_DEVICE void wgmma_wait() {
#if defined(TINYVLLM_EMULATOR)
    emulator::wgmma_wait(pending);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
}

/// The sums are complete, after wgmma_wait<0>(): the compiler reads none of them earlier.
template <int num_tiles>
TINYVLLM_DEVICE void wgmma_hold(float (&d)[num_tiles][4]) {
#if defined(TINYVLLM_EMULATOR)
    (void)d;
#else
#pragma unroll
    for (int j = 0; j < num_tiles; ++j)
        asm volatile("" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])::"memory");
#endif
}

#if defined(TINYVLLM_EMULATOR)
/// Starts d += A B for 64 rows of A and `num_tiles` times eight of B over 16 of K; a warp has 16 rows of A, in fragments
/// as those of `mma_bf16`.
template <int num_tiles>
TINYVLLM_DEVICE void wgmma_bf16(float (&d)[num_tiles][4], uint64_t a, uint64_t b) {
    static_assert(num_tiles == 8 || num_tiles == 16 || num_tiles == 32, "64, 128 or 256 rows of B");
    emulator::wgmma(&d[0][0], num_tiles * 8, a, b);
}
#else

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

/// As above, for 256 rows of B.
TINYVLLM_DEVICE void wgmma_bf16(float (&d)[32][4], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
        "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, "
        "%33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, "
        "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, "
        "%75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, "
        "%114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, 1, 1, 1, 0, "
        "0;"
        : TINYVLLM_D16(0), TINYVLLM_D16(4), TINYVLLM_D16(8), TINYVLLM_D16(12), TINYVLLM_D16(16), TINYVLLM_D16(20),
          TINYVLLM_D16(24), TINYVLLM_D16(28)
        : "l"(a), "l"(b));
}

#undef TINYVLLM_D16
#undef TINYVLLM_D4
#endif

}  // namespace tinyvllm

#endif
