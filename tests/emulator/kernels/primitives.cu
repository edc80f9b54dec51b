// One small kernel for each group of primitives and built-ins, for comparison with NumPy; not examples of speed.
#include "tinyvllm/prelude.cuh"

/// Every 16-bit pattern to float and back. 65536 threads in all.
extern "C" __global__ void convert_all(float* from_bf16, float* from_f16, bf16* back_bf16, f16* back_f16) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    from_bf16[i] = to_float(bf16{uint16_t(i)});
    from_f16[i] = to_float(f16{uint16_t(i)});
    back_bf16[i] = from_float<bf16>(from_bf16[i]);
    back_f16[i] = from_float<f16>(from_f16[i]);
}

/// Floats rounded to the storage types, one at a time and packed.
extern "C" __global__ void round_all(bf16* to_bf16, uint32_t* packed, f16* to_f16, const float* x, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    to_bf16[i] = from_float<bf16>(x[i]);
    packed[i] = pack_bf16(x[i], -x[i]);
    to_f16[i] = from_float<f16>(x[i]);
}

/// One warp: results of shuffles and votes, a row each.
extern "C" __global__ void warp_functions(int* out, const int* x) {
    const int lane = threadIdx.x, mine = x[lane];
    out[0 * 32 + lane] = __shfl_sync(0xffffffffu, mine, lane * 7);
    out[1 * 32 + lane] = __shfl_up_sync(0xffffffffu, mine, 3);
    out[2 * 32 + lane] = __shfl_down_sync(0xffffffffu, mine, 5, 16);
    out[3 * 32 + lane] = __shfl_xor_sync(0xffffffffu, mine, 9);
    out[4 * 32 + lane] = int(__ballot_sync(0xffffffffu, mine > 0));
    out[5 * 32 + lane] = __any_sync(0xffffffffu, mine == x[31]);
    out[6 * 32 + lane] = __all_sync(0xffffffffu, mine == x[31]);
    out[7 * 32 + lane] = int(warp_max<8>(float(mine)));
    out[8 * 32 + lane] = warp_scan(mine);
    // Two halves of the warp in two collectives at once.
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    out[9 * 32 + lane] = lane < 16 ? __shfl_sync(half, mine, 3) : __shfl_sync(half, mine, 30);
}

/// Votes of the block, atomics and integer functions; `totals` is zero before.
extern "C" __global__ void atomics(int* totals, float* sum, uint32_t* ticket, int* out, const int* x) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&totals[0], x[i]);
    atomicMax(&totals[1], x[i]);
    atomicMin(&totals[2], x[i]);
    atomicOr(&totals[3], 1 << (x[i] & 31));
    for (int old = totals[4], seen; (seen = atomicCAS(&totals[4], old, old ^ x[i])) != old;) old = seen;
    atomicAdd(sum, 1.0f);
    atomicInc(ticket, 99u);
    out[4 * i] = __syncthreads_or(x[i] == 7) + 2 * __syncthreads_and(x[i] < 1000) + 4 * __syncthreads_count(x[i] > 0);
    out[4 * i + 1] = __popc(unsigned(x[i])) + 100 * __ffs(x[i]) + 10000 * __clz(x[i]);
    out[4 * i + 2] = int(__umulhi(unsigned(x[i]) * 0x9e3779b9u, 0xdeadbeefu));
    out[4 * i + 3] = int(__brev(unsigned(x[i])));
}

/// Six ldmatrix forms of a 32 x 8 matrix of 16-bit values, and the product of two fragments. One warp.
extern "C" __global__ void matrices(uint32_t* out, float* product, const uint16_t* x, const bf16* a, const bf16* b) {
    __shared__ uint16_t tile[32][8];
    const int lane = threadIdx.x;
    store16(tile[lane], load16(x + lane * 8));
    __syncwarp();  // all rows are in the tile before any lane loads a fragment of it
    uint32_t r1[1], r2[2], r4[4];
    ldmatrix_x1(r1, tile[lane]);
    out[lane] = r1[0];
    ldmatrix_x2(r2, tile[lane]);
    for (int i = 0; i < 2; ++i) out[(1 + i) * 32 + lane] = r2[i];
    ldmatrix_x4(r4, tile[lane]);
    for (int i = 0; i < 4; ++i) out[(3 + i) * 32 + lane] = r4[i];
    ldmatrix_x1_trans(r1, tile[lane]);
    out[7 * 32 + lane] = r1[0];
    ldmatrix_x2_trans(r2, tile[lane]);
    for (int i = 0; i < 2; ++i) out[(8 + i) * 32 + lane] = r2[i];
    ldmatrix_x4_trans(r4, tile[lane]);
    for (int i = 0; i < 4; ++i) out[(10 + i) * 32 + lane] = r4[i];

    const int g = lane / 4, t = lane % 4 * 2;
    uint32_t left[4], right[2];
    for (int i = 0; i < 4; ++i) {
        const bf16* pair = a + (g + i % 2 * 8) * 16 + t + i / 2 * 8;
        left[i] = uint32_t(pair[0].bits) | uint32_t(pair[1].bits) << 16;
    }
    for (int i = 0; i < 2; ++i) right[i] = b[(t + i * 8) * 8 + g].bits | uint32_t(b[(t + i * 8 + 1) * 8 + g].bits) << 16;
    float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    mma_bf16(d, left, right);
    for (int i = 0; i < 4; ++i) product[(g + i / 2 * 8) * 8 + t + i % 2] = d[i];
}
