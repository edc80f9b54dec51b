"""Addition to the residual stream."""

from __future__ import annotations

from tinyvllm.shapes import Float32


def add(residual: Float32, x: Float32) -> Float32:
    """``residual + x``, in place.

    Args:
        residual: ``[T, E]``, float32; changed.
        x: ``[T, E]``, float32.
    Returns:
        ``residual``.
    """
    residual += x
    return residual
