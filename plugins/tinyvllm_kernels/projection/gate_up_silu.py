"""Launches ``gate_up_silu.cu``: norm, gate and up projections and the activation in one, for few rows."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16
from tinyvllm.ops import fused
from tinyvllm.ops.buffers import check_buffer, check_multiple
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu, Linear, Norm
from tinyvllm_kernels.projection.projection import Projection
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling, rows_tier
from tinyvllm_kernels.tiers import Tiers


class GateUpSilu:
    """``out = silu(norm(x) @ gate.T) * (norm(x) @ up.T)`` for up to ``max_rows`` rows.

    Args:
        device: where it runs.
        hidden_size: ``E``, a multiple of 8.
        intermediate_size: ``F``, a multiple of 8.
        eps: of the norm.
        max_rows: maximum number of rows of a call. One row goes to the arithmetic units, more to the tensor cores.
        tiling: how it is cut up; chosen if not given.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        hidden_size: int,
        intermediate_size: int,
        eps: float,
        max_rows: int = 1,
        tiling: Tiling | None = None,
        pdl: bool = True,
    ) -> None:
        tiling = tiling or choose_tiling(
            hidden_size, rows_tier(max_rows), num_outputs=2 * intermediate_size, has_norm=True
        )
        check_multiple("intermediate_size", intermediate_size, tiling.tile_rows // 2)
        self._size, self._eps = intermediate_size, np.float32(eps)
        self._projection = Projection(
            device, "gate_up_silu", size_k=hidden_size, num_outputs=2 * intermediate_size, tiling=tiling,
            max_rows=max_rows, pdl=pdl, eps=eps,
        )  # fmt: skip

    def __call__(self, out: Buffer, x: Buffer, norm: Buffer, weight: Buffer) -> None:
        """Queue it.

        Args:
            out: ``[T, F]``, bfloat16.
            x: ``[T, E]``, bfloat16.
            norm: ``[E]``, bfloat16.
            weight: ``[2F, E]``, bfloat16; gates first.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        p = self._projection
        num_rows = p.check_rows(x)
        check_buffer("gate_up_silu out", out, (num_rows, self._size), BFLOAT16)
        check_buffer("gate_up_silu norm", norm, (p.size_k,), BFLOAT16)
        check_buffer("gate_up_silu weight", weight, (p.num_outputs, p.size_k), BFLOAT16)
        sizes = (np.int32(num_rows), np.int32(self._size), np.int32(p.num_tiles))
        p.launch(num_rows, (out, p.workspace, p.counters, p.normalised(x, norm), norm, weight, *sizes, self._eps))


def bind_gate_up(context: BindContext) -> BoundOp:
    """``rms_norm_gate_up_silu``."""
    device, tiers = context.gpu, Tiers(context)
    composed = fused.compose_gate_up(context) if tiers.has_products else None
    linear = context.linear

    @cache
    def made(eps: float, max_rows: int) -> GateUpSilu:
        return GateUpSilu(
            device, hidden_size=linear.in_features, intermediate_size=linear.out_features // 2, eps=eps,
            max_rows=max_rows, tiling=tiers.tiling(max_rows, linear.in_features, linear.out_features),
        )  # fmt: skip

    def rms_norm_gate_up_silu(out: Buffer, x: Buffer, norm: Norm, gate_up: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None:
            assert composed is not None
            composed(out, x, norm, gate_up)
        else:
            made(norm.eps, rows)(out, x, norm.weight, gate_up.weight)

    return rms_norm_gate_up_silu


BINDERS = {"rms_norm_gate_up_silu": bind_gate_up}
