"""The gated activation of Llama's MLP: SwiGLU without its matrices (Shazeer 2020)."""

from __future__ import annotations

import numpy as np

from tinyvllm.shapes import Float32


def silu_mul(gate_up: Float32, out: Float32 | None = None) -> Float32:
    """``silu(gate) * up`` with ``silu(z) = z / (1 + exp(-z))``.

    Args:
        gate_up: ``[T, 2F]``, float32; the gate first.
        out: where the result goes, as in NumPy.
    Returns:
        ``[T, F]``, float32.
    """
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[:, :half], gate_up[:, half:]
    with np.errstate(over="ignore"):  # exp(-z) overflows to inf for very negative z, and z / inf is the right -0
        out = np.exp(-gate, out)
    out += np.float32(1.0)
    np.divide(gate, out, out=out)
    out *= up
    return out
