"""``y = x W + b``, twice: as fast as the BLAS goes, and bit-equal in any company.

The bits of a BLAS product depend on the number of rows, and in larger tiles on a row's place among them. Tiles
of exactly eight rows, zero-padded, were found to give a row the same bits wherever it stands, on every core
type tried; that is what ``batch_invariant`` buys and pays for.
"""

from __future__ import annotations

import numpy as np

from tinyvllm.layers import ROWS, Linear
from tinyvllm.shapes import Float32, check_shape

ROW_TILE = 8

# Below this many rows a matrix too large for the caches is read faster by one matrix-vector product a row
# than by one packed matrix product (measured: 2 rows of [2048, 16384]: 9.5 ms against 21.5 ms).
_GEMV_ROWS = 3
_GEMV_MIN_ELEMENTS = 1 << 20


def linear(x: Float32, layer: Linear, out: Float32 | None = None) -> Float32:
    """``x @ W + bias``.

    Args:
        x: ``[T, in]``, float32.
        layer: a plain matrix, of the scheme ``"rows"`` or ``"columns"``.
        out: where the result goes, as in NumPy.
    Returns:
        ``[T, out]``, float32; the last bits of a row may depend on ``T``.
    Raises:
        ShapeError: a row of ``x`` is not ``in`` long.
    """
    check_shape("linear input", x.shape, (None, layer.in_features))
    matrix = matrix_of(layer)
    if 1 < len(x) <= _GEMV_ROWS and matrix.size >= _GEMV_MIN_ELEMENTS:
        if out is None:
            out = np.empty((len(x), matrix.shape[1]), x.dtype)
        for row, out_row in zip(x, out, strict=True):
            np.matmul(row, matrix, out=out_row)
    else:
        out = np.matmul(x, matrix, out=out)
    if layer.bias is not None:
        out += layer.bias
    return out


def linear_in_tiles(x: Float32, layer: Linear) -> Float32:
    """:func:`linear` with the rows in tiles of eight: a row's bits do not depend on the others or their number."""
    check_shape("linear input", x.shape, (None, layer.in_features))
    num_rows = len(x)
    padded = np.zeros((-(-num_rows // ROW_TILE) * ROW_TILE, x.shape[1]), np.float32)
    padded[:num_rows] = x
    tiles = padded.reshape(-1, ROW_TILE, x.shape[1]) @ matrix_of(layer)
    out: Float32 = tiles.reshape(len(padded), -1)[:num_rows]
    if layer.bias is not None:
        out += layer.bias
    return out


def matrix_of(layer: Linear) -> Float32:
    """``W``, ``[in, out]``, of a layer whose weight is a plain matrix."""
    weight: Float32 = layer.weight
    return weight.T if layer.scheme == ROWS else weight
