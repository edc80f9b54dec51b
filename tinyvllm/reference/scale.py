"""Multiplication of rows by one number."""

from __future__ import annotations

import numpy as np

from tinyvllm.shapes import Float32


def scale(x: Float32, factor: float) -> Float32:
    """``x * factor``, in place.

    Args:
        x: ``[T, E]``, float32; changed.
        factor: rounded to float32.
    Returns:
        ``x``.
    """
    x *= np.float32(factor)
    return x
