"""Launches ``linear_residual.cu``: a linear layer added to the residual stream, for few rows."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu, Linear
from tinyvllm_kernels.projection.projection import Projection
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling, rows_tier
from tinyvllm_kernels.tiers import Tiers


class LinearResidual:
    """``residual += x @ weight.T + bias`` for up to ``max_rows`` rows.

    Args:
        device: where it runs.
        in_features, out_features: of the layer; ``in_features`` a multiple of 8.
        max_rows: maximum number of rows of a call. One row goes to the arithmetic units, more to the tensor cores.
        tiling: how it is cut up; chosen if not given.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        in_features: int,
        out_features: int,
        max_rows: int = 1,
        tiling: Tiling | None = None,
        pdl: bool = True,
    ) -> None:
        tiling = tiling or choose_tiling(in_features, rows_tier(max_rows), num_outputs=out_features)
        self._projection = Projection(
            device, "linear_residual", size_k=in_features, num_outputs=out_features, tiling=tiling, max_rows=max_rows,
            pdl=pdl,
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
        sizes = (np.int32(num_rows), np.int32(p.num_outputs), np.int32(p.num_tiles))
        p.launch(num_rows, (residual, p.workspace, p.counters, x, weight, bias, *sizes))


def bind_linear_residual(context: BindContext) -> BoundOp:
    """``linear_residual``."""
    device, tiers = context.gpu, Tiers(context)

    @cache
    def made(out_features: int, in_features: int, max_rows: int) -> LinearResidual:
        return LinearResidual(
            device, in_features=in_features, out_features=out_features, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, in_features, out_features),
        )  # fmt: skip

    def linear_residual(residual: Buffer, x: Buffer, layer: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None and layer.bias is None:
            device.gemm(residual, x, layer.weight, accumulate=True)
        else:
            made(layer.out_features, layer.in_features, rows or tiers.max_tokens)(residual, x, layer.weight, layer.bias)

    return linear_residual


BINDERS = {"linear_residual": bind_linear_residual}
