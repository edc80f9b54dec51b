"""Launches ``linear_residual_wide.cu``: a linear layer added to the residual stream, from 33 rows on, for Hopper."""

from __future__ import annotations

import numpy as np

from tinyvllm.ops.buffers import VECTOR, check_multiple
from tinyvllm.plugin import Buffer, Gpu
from tinyvllm_kernels.wide.wide import WideProjection

_TILE_ROWS = 64  # few: what the blocks of a tile exchange grows with them


class LinearResidualWide:
    """``residual += x @ weight.T + bias`` for up to ``max_rows`` rows.

    Args:
        device: where it runs; sm_90.
        in_features, out_features: of the layer, multiples of 8.
        batch_rows: rows that a block works on; one of ``wide.BATCH_ROWS``.
        max_rows: maximum number of rows of a call; ``batch_rows`` if not given.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        in_features: int,
        out_features: int,
        batch_rows: int,
        max_rows: int | None = None,
        pdl: bool = True,
    ) -> None:
        check_multiple("out_features", out_features, VECTOR)
        self._projection = WideProjection(
            device, "linear_residual_wide", size_k=in_features, num_outputs=out_features, batch_rows=batch_rows,
            tile_rows=_TILE_ROWS, max_rows=max_rows or batch_rows, pdl=pdl, may_split=True,
        )  # fmt: skip

    def __call__(self, residual: Buffer, x: Buffer, weight: Buffer, bias: Buffer | None = None) -> None:
        """Queue it.

        Args:
            residual: ``[T, N]``, bfloat16; changed in place.
            x: ``[T, K]``, bfloat16; another buffer.
            weight: ``[N, K]``, bfloat16.
            bias: ``[N]``, bfloat16, or None.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        p = self._projection
        num_rows = p.check_layer("residual", residual, x, weight, bias)
        sizes = (np.int32(num_rows), np.int32(p.num_outputs))
        p.launch(num_rows, (residual, p.workspace, p.counters, *p.maps(weight, x), bias, *sizes))
