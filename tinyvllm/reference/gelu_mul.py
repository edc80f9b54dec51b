"""The gated activation of Gemma's MLP: GELU by its hyperbolic tangent (Hendrycks & Gimpel 2016)."""

from __future__ import annotations

import math

import numpy as np

from tinyvllm.shapes import Float32

_ROOT = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def gelu_mul(gate_up: Float32) -> Float32:
    """``gelu(gate) * up`` with ``gelu(z) = z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 z**3)))``.

    Args:
        gate_up: ``[T, 2F]``, float32; the gate first.
    Returns:
        ``[T, F]``, float32.
    """
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[:, :half], gate_up[:, half:]
    with np.errstate(over="ignore"):  # a cube that overflows is infinite, and its tangent one
        inner = gate * (np.float32(_ROOT) + np.float32(_ROOT * _CUBIC) * gate * gate)
    out = np.tanh(inner)
    out += np.float32(1.0)
    out *= gate * np.float32(0.5)
    out *= up
    return out
