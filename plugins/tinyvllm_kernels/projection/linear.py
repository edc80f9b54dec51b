"""Launches ``linear.cu``: a linear layer for few rows."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np

from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu, Linear
from tinyvllm_kernels.projection.projection import Projection
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling, rows_tier
from tinyvllm_kernels.tiers import Tiers


class LinearRows:
    """``out = x @ weight.T + bias`` for up to ``max_rows`` rows.

    Args:
        device: where it runs.
        in_features, out_features: of the layer; ``in_features`` a multiple of 8.
        max_rows: maximum number of rows of a call. One row goes to the arithmetic units, more to the tensor cores.
        tiling: how it is cut up; chosen if not given.
        pdl: the launch may overlap the end of its predecessor.
    """

    name: ClassVar[str] = "linear"
    """Of the source and of the kernel."""
    out_name: ClassVar[str] = "out"
    """Of the buffer that it writes, for messages."""

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
            device, self.name, size_k=in_features, num_outputs=out_features, tiling=tiling, max_rows=max_rows,
            pdl=pdl,
        )  # fmt: skip

    def __call__(self, out: Buffer, x: Buffer, weight: Buffer, bias: Buffer | None = None) -> None:
        """Queue it.

        Args:
            out: ``[T, N]``, bfloat16.
            x: ``[T, K]``, bfloat16.
            weight: ``[N, K]``, bfloat16.
            bias: ``[N]``, bfloat16, or None.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        p = self._projection
        num_rows = p.check_layer(self.out_name, out, x, weight, bias)
        sizes = (np.int32(num_rows), np.int32(p.num_outputs), np.int32(p.num_tiles))
        p.launch(num_rows, (out, p.workspace, p.counters, x, weight, bias, *sizes))


def bind_linear(context: BindContext) -> BoundOp:
    """``linear``."""
    return bind_layer(context, LinearRows, accumulate=False)


def bind_layer(context: BindContext, launcher: type[LinearRows], *, accumulate: bool) -> BoundOp:
    """The op that a launcher serves for few rows; more go to the library, which adds no bias.

    Args:
        context: of the engine.
        launcher: for few rows, and for any number with a bias.
        accumulate: the product is added to what is there.
    """
    device, tiers = context.gpu, Tiers(context)

    @cache
    def made(out_features: int, in_features: int, max_rows: int) -> LinearRows:
        return launcher(
            device, in_features=in_features, out_features=out_features, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, in_features, out_features),
        )  # fmt: skip

    def linear(out: Buffer, x: Buffer, layer: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None and layer.bias is None:
            device.gemm(out, x, layer.weight, accumulate=accumulate)
        else:
            made(layer.out_features, layer.in_features, rows or tiers.max_tokens)(out, x, layer.weight, layer.bias)

    return linear


BINDERS = {"linear": bind_linear}
