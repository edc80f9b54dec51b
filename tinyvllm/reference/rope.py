"""Rotary position embedding (Su et al. 2021), in the half-split pairing of Hugging Face checkpoints.

Component ``i`` is paired with ``i + D/2``; pairing neighbours, as the paper writes it, needs permuted weights.
"""

from __future__ import annotations

import numpy as np

from tinyvllm.layers import AttentionProjection, RotaryTable
from tinyvllm.shapes import Float32, Int32, check_shape


def rope(x: Float32, positions: Int32, table: RotaryTable) -> Float32:
    """Every pair ``(x[i], x[i + D/2])`` turned by the angle of its position and frequency.

    Args:
        x: ``[T, N, D]``, float32; any number of heads ``N``.
        positions: ``[T]``, int32.
        table: cosines and sines, ``[max_model_len, D/2]``.
    Returns:
        ``[T, N, D]``, float32.
    Raises:
        ShapeError: the table is not half as wide as a head.
    """
    half = x.shape[-1] // 2
    check_shape("rope table", table.cos.shape, (None, half))
    cos = np.take(table.cos, positions, axis=0)[:, None, :]  # [T, 1, D/2]
    sin = np.take(table.sin, positions, axis=0)[:, None, :]
    low, high = x[..., :half], x[..., half:]
    out = np.empty_like(x)
    np.subtract(low * cos, high * sin, out=out[..., :half])
    np.add(high * cos, low * sin, out=out[..., half:])
    return out


def heads_of(qkv: Float32, projection: AttentionProjection) -> tuple[Float32, Float32]:
    """The rows of a projection cut into heads: queries and keys, ``[T, H + K, D]``, and values, ``[T, K, D]``.

    Args:
        qkv: ``[T, (H + 2K) D]``; queries, keys, values.
        projection: for the numbers of heads.
    """
    heads = qkv.reshape(len(qkv), -1, projection.head_dim)
    num_rotated = projection.num_heads + projection.num_kv_heads
    return heads[:, :num_rotated], heads[:, num_rotated:]
