// One product of a warpgroup, out = a b^T, its operands brought by the copy engine; and mistakes that it may make.
//   Shapes     out [64, N], a [64, 128], b [N, 128] bfloat16; N is NUM_COLUMNS (64, 128 or 256)
//   Mapping    warps 0 to 3 multiply, a thread of warp 4 asks for the boxes: two stages of 64 columns
#include "tinyvllm/prelude.cuh"
#if defined(TINYVLLM_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_HOPPER 1
#include "tinyvllm/tensor_copy.cuh"
#endif

#ifndef NUM_COLUMNS
#define NUM_COLUMNS 64
#endif
#ifndef MISTAKE
#define MISTAKE 0
#endif
enum Mistake {
    none, not_set_up, not_landed, not_fenced, not_waited, overwritten, part_of_a_warp, left_behind, misaligned
};

#if HAS_HOPPER
struct alignas(1024) Shared {
    uint4 a[2][64][8], b[2][NUM_COLUMNS][8];
    uint64_t full[2];
};

extern "C" __global__ void __launch_bounds__(160)
    product(float* out, const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map) {
    Shared& shared = *dynamic_shared<Shared>();
    if (threadIdx.x == 0 && MISTAKE != not_set_up)
        for (int stage = 0; stage < 2; ++stage) mbarrier_init(&shared.full[stage], 1);
    __syncthreads();
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
    if (threadIdx.x == 128) {
        prefetch_tensor_map(a_map);
        for (int stage = 0; stage < 2; ++stage) {
            mbarrier_expect(&shared.full[stage], sizeof shared.a[0] + sizeof shared.b[0]);
            tensor_copy_once(shared.a[stage][MISTAKE == misaligned], a_map, &shared.full[stage], 0, stage * 64);
            tensor_copy(shared.b[stage], b_map, &shared.full[stage], 0, stage * 64);
        }
    }
    if (warp == 4 || MISTAKE == left_behind) return;
    if (MISTAKE == part_of_a_warp && threadIdx.x % 32 == 7) return;
    float sums[NUM_COLUMNS / 8][4] = {};
    for (int stage = 0; stage < 2; ++stage) {
        if (MISTAKE != not_landed) mbarrier_wait(&shared.full[stage], 0);
        if (MISTAKE != not_fenced) wgmma_begin();
        for (int step = 0; step < 4; ++step)
            wgmma_bf16(sums, wgmma_rows(shared.a[stage]) + step * 2, wgmma_rows(shared.b[stage]) + step * 2);
        wgmma_commit();
        if (MISTAKE == overwritten) shared.a[stage][threadIdx.x / 2][0].x = 0;
        if (MISTAKE != not_waited) wgmma_wait<0>();
        wgmma_hold(sums);
    }
    for (int j = 0; j < NUM_COLUMNS / 8; ++j)
        for (int i = 0; i < 4; ++i)
            out[(warp * 16 + g + i / 2 * 8) * NUM_COLUMNS + 8 * j + t + i % 2] = sums[j][i];
}

/// A box from `row` (or `run`, of a paired map) and `column` on, as it lies in shared memory.
extern "C" __global__ void box(uint4* out, const __grid_constant__ TensorMap map, int row, int column, int is_paired,
                               int num_vectors) {
    struct alignas(1024) Box {
        uint4 vectors[256 * 8];
        uint64_t full;
    };
    Box& shared = *dynamic_shared<Box>();
    if (threadIdx.x == 0) {
        mbarrier_init(&shared.full, 1);
        mbarrier_expect(&shared.full, num_vectors * 16);
        if (is_paired) tensor_copy_pairs(shared.vectors, map, &shared.full, row, column);
        else tensor_copy(shared.vectors, map, &shared.full, row, column);
    }
    __syncthreads();
    mbarrier_wait(&shared.full, 0);
    for (int i = threadIdx.x; i < num_vectors; i += blockDim.x) out[i] = shared.vectors[i];
}
#else
extern "C" __global__ void product() {}
#endif
