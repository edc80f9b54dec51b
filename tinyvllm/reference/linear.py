"""``y = x W + b``, twice: as fast as the BLAS goes, and bit-equal in any company.

The bits of a BLAS product depend on the number of rows, and in larger tiles on a row's place among them. Tiles
of exactly eight rows, zero-padded, were found to give a row the same bits wherever it stands, on every core
type tried; that is what ``batch_invariant`` buys and pays for.
"""

from __future__ import annotations

import numpy as np

from tinyvllm.batch import Float32
from tinyvllm.layers import Linear
from tinyvllm.shapes import check_shape

ROW_TILE = 8

# Below this many rows a matrix too large for the caches is read faster by one matrix-vector product a row
# than by one packed matrix product (measured: 2 rows of [2048, 16384]: 9.5 ms against 21.5 ms).
_GEMV_ROWS = 3
_GEMV_MIN_ELEMENTS = 1 << 20


def linear(x: Float32, layer: Linear) -> Float32:
    """``x @ layer.weight + layer.bias``.

    Args:
        x: ``[T, in]``, float32.
        layer: a dense layer.
    Returns:
        ``[T, out]``, float32; the last bits of a row may depend on ``T``.
    Raises:
        ShapeError: a row of ``x`` is not ``in`` long.
    """
    check_shape("linear input", x.shape, (None, layer.in_features))
    if 1 < len(x) <= _GEMV_ROWS and layer.weight.size >= _GEMV_MIN_ELEMENTS:
        out = np.stack([row @ layer.weight for row in x])
    else:
        out = x @ layer.weight
    if layer.bias is not None:
        out += layer.bias
    return out


def linear_in_tiles(x: Float32, layer: Linear) -> Float32:
    """:func:`linear` with the rows in tiles of eight: a row's bits do not depend on the others or their number."""
    check_shape("linear input", x.shape, (None, layer.in_features))
    num_rows = len(x)
    padded = np.zeros((-(-num_rows // ROW_TILE) * ROW_TILE, x.shape[1]), np.float32)
    padded[:num_rows] = x
    tiles = padded.reshape(-1, ROW_TILE, x.shape[1]) @ layer.weight
    out: Float32 = tiles.reshape(len(padded), -1)[:num_rows]
    if layer.bias is not None:
        out += layer.bias
    return out
