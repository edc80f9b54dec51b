"""Launches ``logits.cu``: logits of rows that are normalised already, for few rows."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16, FLOAT32
from tinyvllm.ops.buffers import check_buffer
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu, Linear
from tinyvllm_kernels.projection.projection import Projection
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling, rows_tier
from tinyvllm_kernels.tiers import FUSED_HEAD_ROWS, Tiers


class LogitsRows:
    """``logits = x @ weight.T`` in float32, for up to ``max_rows`` rows.

    Args:
        device: where it runs.
        hidden_size: ``K``, a multiple of 8.
        vocab_size: ``V``.
        max_rows: maximum number of rows of a call. One row goes to the arithmetic units, more to the tensor cores.
        tiling: how it is cut up; chosen if not given.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        hidden_size: int,
        vocab_size: int,
        max_rows: int = 1,
        tiling: Tiling | None = None,
        pdl: bool = True,
    ) -> None:
        tiling = tiling or choose_tiling(hidden_size, rows_tier(max_rows), num_outputs=vocab_size, may_split=False)
        self._projection = Projection(
            device, "logits", size_k=hidden_size, num_outputs=vocab_size, tiling=tiling, max_rows=max_rows,
            pdl=pdl,
        )  # fmt: skip

    def __call__(self, logits: Buffer, x: Buffer, weight: Buffer) -> None:
        """Queue it.

        Args:
            logits: ``[T, V]``, float32.
            x: ``[T, K]``, bfloat16.
            weight: ``[V, K]``, bfloat16.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        p = self._projection
        num_rows = p.check_rows(x)
        check_buffer("logits", logits, (num_rows, p.num_outputs), FLOAT32)
        check_buffer("logits weight", weight, (p.num_outputs, p.size_k), BFLOAT16)
        sizes = (np.int32(num_rows), np.int32(p.num_outputs), np.int32(p.num_tiles))
        p.launch(num_rows, (logits, x, weight, *sizes))


def bind_lm_head(context: BindContext) -> BoundOp:
    """``lm_head``."""
    device, tiers = context.gpu, Tiers(context, FUSED_HEAD_ROWS)

    @cache
    def made(vocab_size: int, hidden_size: int, max_rows: int) -> LogitsRows:
        return LogitsRows(
            device, hidden_size=hidden_size, vocab_size=vocab_size, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, hidden_size, vocab_size, may_split=False),
        )  # fmt: skip

    def lm_head(logits: Buffer, x: Buffer, head: Linear) -> None:
        rows = tiers.head_rows(x.shape[0])
        if rows is None:
            device.gemm(logits, x, head.weight)
        else:
            made(head.out_features, head.in_features, rows)(logits, x, head.weight)

    return lm_head


BINDERS = {"lm_head": bind_lm_head}
