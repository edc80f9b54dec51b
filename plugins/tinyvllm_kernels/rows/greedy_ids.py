"""Launches ``argmax.cu`` and ``mark_corrupt.cu``: the most likely token of each row, or -1."""

from __future__ import annotations

import numpy as np

from tinyvllm.device import INT32
from tinyvllm.ops.buffers import beside, ceil_div, check_buffer
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu, SampledBuffers
from tinyvllm_kernels.rows.argmax import Argmax

_THREADS = 128


class GreedyIds:
    """The largest logit of each row, the lowest id of equals; -1 where the largest is NaN or infinite.

    Args:
        device: where it runs.
        vocab_size: ``V``.
        max_rows: maximum number of rows of a call.
        pdl: the launches may overlap the end of their predecessors.
    """

    def __init__(self, device: Gpu, *, vocab_size: int, max_rows: int, pdl: bool = True) -> None:
        self._device, self._pdl = device, pdl
        self._argmax = Argmax(device, vocab_size=vocab_size, max_rows=max_rows, pdl=pdl)
        self._mark = device.compile(beside(__file__, "mark_corrupt.cu"), {"THREADS": _THREADS}).function("mark_corrupt")
        self._sampled = SampledBuffers.allocate(device, max_rows)
        self._slots = device.memory.alloc((max_rows,), INT32)
        device.memory.upload(self._slots, np.arange(max_rows, dtype=np.int32))

    def __call__(self, token_ids: Buffer, logits: Buffer) -> None:
        """Queue it.

        Args:
            token_ids: ``[T]``, int32.
            logits: ``[T, V]``, float32.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        num_rows = logits.shape[0]
        check_buffer("argmax token_ids", token_ids, (num_rows,), INT32)
        is_corrupt = self._sampled.is_corrupt.view((num_rows,))
        out = SampledBuffers(token_ids, is_corrupt)
        self._argmax(out, logits, self._slots.view((num_rows,)))
        grid = (ceil_div(num_rows, _THREADS), 1, 1)
        arguments = (token_ids, is_corrupt, np.int32(num_rows))
        self._device.launch(self._mark, grid, (_THREADS, 1, 1), arguments, pdl=self._pdl)


def bind_argmax(context: BindContext) -> BoundOp:
    """``argmax``."""
    return GreedyIds(context.gpu, vocab_size=context.spec.model.vocab_size, max_rows=context.limits.max_logits_rows)


BINDERS = {"argmax": bind_argmax}
