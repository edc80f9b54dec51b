// Hopper's copy engine: one thread asks for a box of a matrix, a barrier in shared memory says when it is there.
//
// Only sm_90a has these, and the emulator. There a box is read when it is asked for, fills its destination with 0xFF at
// once, and lands only when somebody waits for the barrier that counts it.
#pragma once

namespace tinyvllm {

/// A matrix of bfloat16 in boxes of 64 columns: `Device.tensor_map`, a kernel's `const __grid_constant__` parameter.
#if defined(TINYVLLM_EMULATOR)
using emulator::TensorMap;
#else
struct alignas(64) TensorMap {
    uint64_t words[16];
};
#endif

/// A barrier of shared memory, 8-byte aligned: a phase ends when so many threads have arrived and all bytes announced
/// have landed; phases count from 0. One thread sets it up, before a __syncthreads().
TINYVLLM_DEVICE void mbarrier_init(uint64_t* barrier, uint32_t num_arrivals) {
#if defined(TINYVLLM_EMULATOR)
    emulator::mbarrier_init(barrier, num_arrivals);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                     shared_address(barrier)),
                 "r"(num_arrivals)
                 : "memory");
#endif
}

/// Arrives: what this thread has done is seen by those who wait for the phase.
TINYVLLM_DEVICE void mbarrier_arrive(uint64_t* barrier) {
#if defined(TINYVLLM_EMULATOR)
    emulator::mbarrier_arrive(barrier, 0);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

/// Arrives, and announces bytes that copies will bring in this phase.
TINYVLLM_DEVICE void mbarrier_expect(uint64_t* barrier, uint32_t num_bytes) {
#if defined(TINYVLLM_EMULATOR)
    emulator::mbarrier_arrive(barrier, num_bytes);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(num_bytes)
                 : "memory");
#endif
}

/// Waits for the end of the phase of this parity: the current one, or the one before, which has ended.
TINYVLLM_DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
#if defined(TINYVLLM_EMULATOR)
    emulator::mbarrier_wait(barrier, parity);
#else
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::
            "r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
#endif
}

/// Has the description of a matrix fetched, so that the first copy does not wait for it.
TINYVLLM_DEVICE void prefetch_tensor_map(const TensorMap& map) {
#if defined(TINYVLLM_EMULATOR)
    (void)map;
#else
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

#if defined(TINYVLLM_EMULATOR)
#define TINYVLLM_TENSOR_COPY(COORDINATES, ROW, POLICY) emulator::copy_box(to, map, barrier, column, ROW)
#else
#define TINYVLLM_TENSOR_COPY(COORDINATES, ROW, POLICY)                                                           \
    asm volatile("cp.async.bulk.tensor." COORDINATES ", [%2], %5;" ::"r"(shared_address(to)), "l"(&map),         \
                 "r"(shared_address(barrier)), "r"(column), "r"(ROW), "l"(uint64_t(POLICY)), "r"(0)              \
                 : "memory")
#endif
#define TINYVLLM_TENSOR_2D \
    "2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}]"
#define TINYVLLM_TENSOR_4D \
    "4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %6, %6, %4}]"

/// Starts to copy the box from `row`, `column` to `to`, 1024-byte aligned: vector v (16 bytes) of its row r lies at
/// v ^ r % 8 there. `barrier` counts its bytes, those beyond the matrix included. For what is read again: x.
TINYVLLM_DEVICE void tensor_copy(void* to, const TensorMap& map, uint64_t* barrier, int row, int column) {
    TINYVLLM_TENSOR_COPY(TINYVLLM_TENSOR_2D, row, 0x14F0000000000000);  // evict last
}

/// As `tensor_copy`, for what is read once: weights.
TINYVLLM_DEVICE void tensor_copy_once(void* to, const TensorMap& map, uint64_t* barrier, int row, int column) {
    TINYVLLM_TENSOR_COPY(TINYVLLM_TENSOR_2D, row, 0x12F0000000000000);  // evict first
}

/// As `tensor_copy_once` with a paired map: from run `run` of eight rows of either half on.
TINYVLLM_DEVICE void tensor_copy_pairs(void* to, const TensorMap& map, uint64_t* barrier, int run, int column) {
    TINYVLLM_TENSOR_COPY(TINYVLLM_TENSOR_4D, run, 0x12F0000000000000);
}

#undef TINYVLLM_TENSOR_2D
#undef TINYVLLM_TENSOR_4D
#undef TINYVLLM_TENSOR_COPY

}  // namespace tinyvllm
