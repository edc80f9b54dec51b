"""Launches ``logprobs.cu``: log-probabilities and ranks of the raw logits."""

from __future__ import annotations

import numpy as np

from tinyvllm.device import FLOAT32, INT32
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import beside, check_buffer
from tinyvllm.plugin import Buffer, Gpu, LogprobBuffers
from tinyvllm_samplers.gpu.sample import check_vocab_size

MAX_LISTED = 64
"""Most tokens beside the chosen one; more, or the whole vocabulary, is a matter for the host."""

LIST_SIZE = 1024
"""Tokens of a row that fit in shared memory beside the histogram, within the 48 KiB of every card."""


class Logprobs:
    """Log-probability and rank of each row's chosen token, and the most likely tokens.

    Args:
        device: where it runs.
        vocab_size: ``V``, at most 2**20.
        threads: of a block, a power of two.
        list_size: tokens that a block can hold.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        vocab_size: int,
        threads: int = 1024,
        list_size: int = LIST_SIZE,
        pdl: bool = True,
    ) -> None:
        check_vocab_size("logprobs", vocab_size)
        self._device, self._vocab_size, self._threads, self._pdl = device, vocab_size, threads, pdl
        defines = {"THREADS": threads, "LIST_SIZE": list_size, "MAX_LISTED": MAX_LISTED}
        self._function = device.compile(beside(__file__, "logprobs.cu"), defines).function("logprobs_rows")

    def __call__(
        self, out: LogprobBuffers, logits: Buffer, chosen: Buffer, slots: Buffer, num_logprobs: Buffer
    ) -> None:
        """Queue it.

        Args:
            out: ``B`` rows of width ``1 + k``, ``k`` at most 64 and ``V``. Rows that ask for none, and corrupt ones,
                get NaN and rank 0; rows without a slot are not written.
            logits: ``[B, V]``, float32, raw.
            chosen: ``[B]``, int32.
            slots: ``[B]``, int32; negative where a row samples nothing.
            num_logprobs: ``[S]``, int32; ``NO_LOGPROBS`` where a slot asks for none.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``k`` is out of range.
        """
        num_rows, num_listed = logits.shape[0], out.token_ids.shape[-1] - 1
        if not 0 <= num_listed <= min(MAX_LISTED, self._vocab_size):
            raise ShapeError(f"logprobs: {num_listed} columns, expected 0 to {min(MAX_LISTED, self._vocab_size)}")
        check_buffer("logprobs logits", logits, (None, self._vocab_size), FLOAT32)
        check_buffer("logprobs token_ids", out.token_ids, (num_rows, 1 + num_listed), INT32)
        check_buffer("logprobs logprobs", out.logprobs, (num_rows, 1 + num_listed), FLOAT32)
        for what, buffer in (("rank", out.rank), ("chosen", chosen), ("slots", slots)):
            check_buffer(f"logprobs {what}", buffer, (num_rows,), INT32)
        check_buffer("logprobs num_logprobs", num_logprobs, (None,), INT32)
        arguments = (
            out.token_ids, out.logprobs, out.rank, logits, chosen, slots, num_logprobs, np.int32(self._vocab_size),
            np.int32(num_listed),
        )  # fmt: skip
        self._device.launch(self._function, (num_rows, 1, 1), (self._threads, 1, 1), arguments, pdl=self._pdl)
