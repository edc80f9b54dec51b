"""Root-mean-square normalisation (Zhang & Sennrich 2019)."""

from __future__ import annotations

import numpy as np

from tinyvllm.layers import Norm
from tinyvllm.shapes import Float32, check_shape


def rms_norm(x: Float32, norm: Norm, out: Float32 | None = None) -> Float32:
    """``x / sqrt(mean(x**2) + eps) * weight`` along the last axis.

    Args:
        x: ``[..., N]``, float32.
        norm: its weight is ``[N]``.
        out: where the result goes, as in NumPy; may be ``x``.
    Returns:
        the shape of ``x``, float32. A row's bits do not depend on the other rows.
    Raises:
        ShapeError: the weight is not as long as a row of ``x``.
    """
    check_shape("rms_norm weight", norm.weight.shape, (x.shape[-1],))
    # add.reduce, not mean: the wrapper alone would cost more than the sum for one row.
    mean_square = np.add.reduce(x * x, axis=-1, keepdims=True) * np.float32(1.0 / x.shape[-1])
    out = np.multiply(x, np.float32(1.0) / np.sqrt(mean_square + np.float32(norm.eps)), out)
    out *= norm.weight
    return out
