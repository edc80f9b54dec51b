// The tensor core, by the warp-level instructions that every architecture from sm_80 has.
//
// Fragments, for lane l with g = l / 4 and t = l % 4; a register holds two neighbours, the lower index in its low half:
//   a[0] A[g][2t..]  a[1] A[g+8][2t..]  a[2] A[g][2t+8..]  a[3] A[g+8][2t+8..]     A is 16 x 16
//   b[0] B[2t..][g]  b[1] B[2t+8..][g]                                             B is 16 x 8
//   d[0] D[g][2t]    d[1] D[g][2t+1]    d[2] D[g+8][2t]    d[3] D[g+8][2t+1]       D is 16 x 8
#pragma once

namespace tinyvllm {

/// d += A B for one 16 x 8 tile over 16 of the inner dimension: bfloat16 products, float32 sums. All 32 lanes.
TINYVLLM_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(TINYVLLM_EMULATOR)
    emulator::mma_bf16(d, a, b);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#if defined(TINYVLLM_EMULATOR)
#define TINYVLLM_LDMATRIX(COUNT, TRANS, PTX, ...) emulator::ldmatrix<COUNT, TRANS>(r, row)
#else
#define TINYVLLM_LDMATRIX(COUNT, TRANS, PTX, ...) \
    const uint32_t address = shared_address(row); \
    asm volatile("ldmatrix.sync.aligned.m8n8." PTX : __VA_ARGS__ : "r"(address) : "memory")
#endif

/// One 8 x 8 tile of 16-bit values from shared memory. Lanes 0 to 7 give the address of a row each (16 bytes, aligned);
/// lane l receives the values [l / 4][2 * (l % 4)] and the next.
TINYVLLM_DEVICE void ldmatrix_x1(uint32_t (&r)[1], const void* row) {
    TINYVLLM_LDMATRIX(1, false, "x1.shared.b16 {%0}, [%1];", "=r"(r[0]));
}

/// Two tiles: lanes 0 to 7 give the rows of the first, 8 to 15 those of the second.
TINYVLLM_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    TINYVLLM_LDMATRIX(2, false, "x2.shared.b16 {%0, %1}, [%2];", "=r"(r[0]), "=r"(r[1]));
}

/// Four tiles: eight lanes each give the rows.
TINYVLLM_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    TINYVLLM_LDMATRIX(4, false, "x4.shared.b16 {%0, %1, %2, %3}, [%4];", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
                      "=r"(r[3]));
}

/// As `ldmatrix_x1`, transposed: lane l receives [2 * (l % 4)][l / 4] and the one below it.
TINYVLLM_DEVICE void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row) {
    TINYVLLM_LDMATRIX(1, true, "x1.trans.shared.b16 {%0}, [%1];", "=r"(r[0]));
}

/// As `ldmatrix_x2`, each tile transposed.
TINYVLLM_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
    TINYVLLM_LDMATRIX(2, true, "x2.trans.shared.b16 {%0, %1}, [%2];", "=r"(r[0]), "=r"(r[1]));
}

/// As `ldmatrix_x4`, each tile transposed.
TINYVLLM_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    TINYVLLM_LDMATRIX(4, true, "x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
                      "=r"(r[3]));
}

#undef TINYVLLM_LDMATRIX

}  // namespace tinyvllm
