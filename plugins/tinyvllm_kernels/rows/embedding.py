"""Launches ``embedding.cu``: token ids to rows of the embedding table."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16, INT32
from tinyvllm.ops.buffers import VECTOR, WARP_SIZE, beside, check_buffer, check_multiple, round_up
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu


class Embedding:
    """``out[t] = table[token_ids[t]]``; a row of NaN for an id outside of the vocabulary.

    Args:
        device: where it runs.
        hidden_size: ``E``, a multiple of 8.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(self, device: Gpu, *, hidden_size: int, pdl: bool = True) -> None:
        check_multiple("hidden_size", hidden_size, VECTOR)
        self._device, self._hidden_size, self._pdl = device, hidden_size, pdl
        self._threads = min(256, round_up(hidden_size // VECTOR, WARP_SIZE))
        module = device.compile(beside(__file__, "embedding.cu"), {"SIZE_E": hidden_size, "THREADS": self._threads})
        self._function = module.function("embedding")

    def __call__(self, out: Buffer, token_ids: Buffer, table: Buffer) -> None:
        """Queue it.

        Args:
            out: ``[T, E]``, bfloat16.
            token_ids: ``[T]``, int32.
            table: ``[V, E]``, bfloat16.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        num_tokens = out.shape[0]
        check_buffer("embedding out", out, (None, self._hidden_size), BFLOAT16)
        check_buffer("embedding token_ids", token_ids, (num_tokens,), INT32)
        check_buffer("embedding table", table, (None, self._hidden_size), BFLOAT16)
        arguments = (out, token_ids, table, np.int32(table.shape[0]))
        self._device.launch(self._function, (num_tokens, 1, 1), (self._threads, 1, 1), arguments, pdl=self._pdl)


def bind_embedding(context: BindContext) -> BoundOp:
    """``embedding``."""
    device = context.gpu
    made = cache(lambda size: Embedding(device, hidden_size=size))

    def embedding(out: Buffer, token_ids: Buffer, table: Buffer) -> None:
        made(table.shape[1])(out, token_ids, table)

    return embedding


BINDERS = {"embedding": bind_embedding}
