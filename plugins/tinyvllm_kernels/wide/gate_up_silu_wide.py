"""Launches ``gate_up_silu_wide.cu``: norm, gate and up projections and the activation, from 17 rows on, for Hopper."""

from __future__ import annotations

import numpy as np

from tinyvllm.device import BFLOAT16
from tinyvllm.ops.buffers import VECTOR, check_buffer, check_multiple
from tinyvllm.plugin import Buffer, Gpu
from tinyvllm_kernels.rows.rms_norm import NormedRows
from tinyvllm_kernels.wide.wide import WideProjection

TILE_ROWS = 128
"""Weight rows of a block."""


class GateUpSiluWide:
    """``out = silu(norm(x) @ gate.T) * (norm(x) @ up.T)`` for up to ``max_rows`` rows; the norm by a kernel before.

    Args:
        device: where it runs; sm_90.
        hidden_size: ``E``, a multiple of 8.
        intermediate_size: ``F``, a multiple of 8.
        eps: of the norm.
        batch_rows: rows that a block works on; one of ``wide.BATCH_ROWS``.
        max_rows: maximum number of rows of a call; ``batch_rows`` if not given.
        normed: ``[max_rows, E]`` or more rows, bfloat16, for normalised rows; memory of its own if not given.
        pdl: the launches may overlap the end of their predecessors.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        hidden_size: int,
        intermediate_size: int,
        eps: float,
        batch_rows: int,
        max_rows: int | None = None,
        normed: Buffer | None = None,
        pdl: bool = True,
    ) -> None:
        check_multiple("intermediate_size", intermediate_size, VECTOR)
        self._size = intermediate_size
        self._projection = WideProjection(
            device, "gate_up_silu_wide", size_k=hidden_size, num_outputs=2 * intermediate_size, batch_rows=batch_rows,
            tile_rows=TILE_ROWS, max_rows=max_rows or batch_rows, pdl=pdl, paired=True,
        )  # fmt: skip
        self._normed = NormedRows(
            device, max_rows or batch_rows, hidden_size=hidden_size, eps=eps, pdl=pdl, rows=normed
        )

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
        check_buffer("gate_up_silu_wide out", out, (num_rows, self._size), BFLOAT16)
        check_buffer("gate_up_silu_wide weight", weight, (p.num_outputs, p.size_k), BFLOAT16)
        p.launch(num_rows, (out, *p.maps(weight, self._normed(x, norm)), np.int32(num_rows), np.int32(self._size)))
