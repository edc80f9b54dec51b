"""Launches ``penalties.cu``: the rules of requests on a copy of their logits, and the state that they need."""

from __future__ import annotations

import numpy as np

from tinyvllm.device import FLOAT32, INT32
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import beside, ceil_div, check_buffer
from tinyvllm.plugin import Buffer, Gpu, SlotParameters
from tinyvllm_samplers.gpu.sample_rules import RuleState


class Penalties:
    """Masks, biases and penalties of the rows whose slot has a ``rule_row``.

    A step calls :meth:`apply` before sampling and :meth:`record` after it; :meth:`start` belongs to the admission of
    a sequence.

    Args:
        device: where it runs.
        state: the rules; its buffers are bound here once.
        threads: of a block.
        tile: tokens of a block.
        pdl: the launches may overlap the end of their predecessors.
    """

    def __init__(
        self, device: Gpu, state: RuleState, *, threads: int = 256, tile: int = 2048, pdl: bool = True
    ) -> None:
        self._device, self._state, self._threads, self._pdl = device, state, threads, pdl
        self._num_tiles = ceil_div(state.vocab_size, tile)
        defines = {"THREADS": threads, "TILE": tile, "WINDOW": state.window}
        module = device.compile(beside(__file__, "penalties.cu"), defines)
        self._apply = module.function("apply_rules")
        self._record = module.function("record_tokens")
        self._start = module.function("start_rules")
        self.adjusted = device.memory.alloc((state.num_rows, state.vocab_size), np.float32)
        """``[R, V]``, float32: what :meth:`apply` writes and ``Sample`` reads."""

    def apply(self, logits: Buffer, columns: SlotParameters, slots: Buffer) -> None:
        """Queue the copy of the logits of rows with rules, rules applied, to ``adjusted``.

        Args:
            logits: ``[B, V]``, float32, raw; left as they are.
            columns: the parameters of ``S`` slots, of which ``rule_row`` is read. No two rows may share a rule row.
            slots: ``[B]``, int32; negative where a row samples nothing.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        state, num_rows = self._state, logits.shape[0]
        check_buffer("penalties logits", logits, (None, state.vocab_size), FLOAT32)
        check_buffer("penalties slots", slots, (num_rows,), INT32)
        arguments = (
            self.adjusted, logits, slots, columns.rule_row, state.presence, state.frequency, state.repetition,
            state.min_tokens, state.num_output, state.recent, state.counts, state.allowed.offsets,
            state.allowed.values, state.end.offsets, state.end.values, state.bias_ids.offsets, state.bias_ids.values,
            state.bias_values.values, state.row_words, state.words.offsets, state.words.values,
            np.int32(state.vocab_size),
        )  # fmt: skip
        grid = (self._num_tiles, num_rows, 1)
        self._device.launch(self._apply, grid, (self._threads, 1, 1), arguments, pdl=self._pdl)

    def record(self, token_ids: Buffer, columns: SlotParameters, slots: Buffer) -> None:
        """Queue the addition of chosen tokens to the state.

        Args:
            token_ids, slots: ``[B]``, int32.
            columns: as in :meth:`apply`.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        state, num_rows = self._state, slots.shape[0]
        check_buffer("penalties slots", slots, (None,), INT32)
        check_buffer("penalties token_ids", token_ids, (num_rows,), INT32)
        arguments = (
            state.counts, state.num_output, state.recent, token_ids, slots, columns.rule_row, np.int32(num_rows),
            np.int32(state.vocab_size),
        )  # fmt: skip
        grid = (ceil_div(num_rows, self._threads), 1, 1)
        self._device.launch(self._record, grid, (self._threads, 1, 1), arguments, pdl=self._pdl)

    def start(self, rule_row: int, tokens: Buffer, num_prompt_tokens: int) -> None:
        """Queue the state of a sequence that begins, or goes on after a preemption.

        Args:
            rule_row: the sequence's.
            tokens: ``[n]``, int32: its prompt, then what it has generated.
            num_prompt_tokens: how many of them are the prompt.
        Raises:
            ShapeError: there is no such row, or the prompt is longer than the tokens.
        """
        state = self._state
        check_buffer("penalties tokens", tokens, (None,), INT32)
        num_tokens = tokens.shape[0]
        if not 0 <= rule_row < state.num_rows or not 0 <= num_prompt_tokens <= num_tokens:
            raise ShapeError(
                f"penalties: rule row {rule_row} of {state.num_rows}, {num_prompt_tokens} prompt tokens of {num_tokens}"
            )
        arguments = (
            state.counts, state.num_output, state.recent, tokens, np.int32(num_prompt_tokens), np.int32(num_tokens),
            np.int32(rule_row), np.int32(state.vocab_size),
        )  # fmt: skip
        self._device.launch(self._start, (1, 1, 1), (self._threads, 1, 1), arguments, pdl=self._pdl)
