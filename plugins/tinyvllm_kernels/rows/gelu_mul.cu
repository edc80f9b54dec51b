// The gated activation of Gemma's MLP: GELU by its hyperbolic tangent.
//   Formula    out[t][f] = gate / 2 * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 gate^3))) * up,
//              gate = gate_up[t][f], up = gate_up[t][F + f]
//   Reference  tinyvllm/reference/gelu_mul.py
//   Shapes     out [T, F], gate_up [T, 2 F] bfloat16; F % 8 == 0 (SIZE_F)
//   Mapping    a thread owns 8 neighbours of a row; blockIdx.y is the row
//   Numerics   float32; rounds once. A cube that overflows is infinite, and its tangent one
//   Traffic    6 F bytes a token; bandwidth
#include "tinyvllm/prelude.cuh"
#include "tinyvllm/shared/vectors.cuh"

TINYVLLM_DEVICE float gelu(float x) {
    constexpr float root = 0.7978845608028654f, cubic = 0.044715f * root;  // root is sqrt(2 / pi)
    return 0.5f * x * (1.0f + tanhf(x * (root + cubic * x * x)));
}

extern "C" __global__ void __launch_bounds__(THREADS) gelu_mul(bf16* out, const bf16* gate_up) {
    const int column = int(blockIdx.x * THREADS + threadIdx.x) * 8;
    const size_t row = blockIdx.y;
    pdl_launch_dependents();
    pdl_wait();  // gate_up is the predecessor's
    if (column >= SIZE_F) return;
    const bf16* gate_row = gate_up + row * 2 * SIZE_F + column;
    float gate[8], up[8];
    unpack8(gate, load16(gate_row));
    unpack8(up, load16(gate_row + SIZE_F));
#pragma unroll
    for (int i = 0; i < 8; ++i) gate[i] = gelu(gate[i]) * up[i];
    store16(out + row * SIZE_F + column, pack8(gate));
}
