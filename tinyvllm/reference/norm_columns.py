"""Root-mean-square normalisation of some columns of a matrix: OLMo 2's of all queries, and of all keys, at once."""

from __future__ import annotations

from tinyvllm.layers import Norm
from tinyvllm.reference.rms_norm import rms_norm
from tinyvllm.shapes import Float32


def norm_columns(x: Float32, first: int, norm: Norm) -> Float32:
    """``rms_norm`` of the columns ``first .. first + N - 1``, in place.

    Args:
        x: ``[T, W]``, float32; changed.
        first: column.
        norm: its weight is ``[N]``.
    Returns:
        ``x``.
    """
    columns = x[:, first : first + norm.weight.shape[0]]
    rms_norm(columns, norm, columns)
    return x
