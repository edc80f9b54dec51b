"""Launches ``sample.cu`` and ``sample_cut.cu``: one token a row, greedy or drawn at random."""

from __future__ import annotations

import numpy as np

from tinyvllm.devices.interface import Buffer, Device
from tinyvllm.errors import ShapeError
from tinyvllm.kernels.argmax import check_rows
from tinyvllm.kernels.launch import FLOAT32, INT32, check_buffer, source
from tinyvllm.kernels.sample_columns import DeviceSamplingColumns, SampledBuffers
from tinyvllm.kernels.sample_tiles import RowTiles

MAX_VOCAB_SIZE = 2**20
"""A token's place in an order has 20 bits for its id."""
LIST_SIZE = 3072
"""Tokens of a row that fit in shared memory beside the histogram, within the 48 KiB of every card."""
_RECORD_WORDS = 16
_MIN_BLOCKS = 4  # of an SM: 64 registers a thread hide more latency than 80


class Sample:
    """Temperature, ``min_p``, ``top_k`` and ``top_p`` as each row's slot says.

    Args:
        device: where it runs.
        vocab_size: ``V``, at most 2**20.
        max_rows: most rows of a call.
        threads: of a block of the pass over all rows. loads: groups of four tokens that each has under way.
        num_blocks: that pass's in a call; None: what the device holds at once. No token depends on it.
        cut_threads: of a block that cuts a row, a power of two.
        list_size: tokens that it can hold.
        pdl: the launches may overlap the end of their predecessors.
    """

    def __init__(
        self,
        device: Device,
        *,
        vocab_size: int,
        max_rows: int,
        threads: int = 256,
        loads: int = 2,
        num_blocks: int | None = None,
        cut_threads: int = 1024,
        list_size: int = LIST_SIZE,
        pdl: bool = True,
    ) -> None:
        check_vocab_size("sample", vocab_size)
        self._device, self._vocab_size, self._max_rows, self._pdl = device, vocab_size, max_rows, pdl
        self._threads, self._cut_threads = threads, cut_threads
        self._tiles = RowTiles.of(device, vocab_size, threads, loads, num_blocks)
        module = device.compile(source("sample.cu"), {**self._tiles.defines, "MIN_BLOCKS": _MIN_BLOCKS})
        self._sample = module.function("sample_rows")
        module = device.compile(source("sample_cut.cu"), {"THREADS": cut_threads, "LIST_SIZE": list_size})
        self._cut = module.function("sample_cut_rows")
        self._row_max = device.memory.alloc((max_rows,), np.float32)
        self._records = device.memory.alloc((max_rows, self._tiles.most, _RECORD_WORDS), np.uint32)
        self._counters = device.memory.alloc((max_rows,), np.uint32)
        device.memory.fill(self._counters, 0)

    def __call__(
        self,
        out: SampledBuffers,
        logits: Buffer,
        columns: DeviceSamplingColumns,
        slots: Buffer,
        positions: Buffer,
        *,
        adjusted: Buffer | None = None,
        may_cut: bool = True,
    ) -> None:
        """Queue it.

        Args:
            out: ``B`` rows; nothing is written for rows without a slot.
            logits: ``[B, V]``, float32.
            columns: the parameters of ``S`` slots.
            slots: ``[B]``, int32; negative where a row samples nothing.
            positions: ``[B]``, int32; position that the token will have in its sequence.
            adjusted: ``[R, V]``, float32; taken instead of ``logits`` by rows that have a ``rule_row``. None: none has.
            may_cut: False promises that no row has ``min_p``, ``top_k`` or ``top_p``, and saves a launch.
        Raises:
            ShapeError: a buffer has another shape or dtype, or there are more rows than announced.
        """
        num_rows = logits.shape[0]
        check_rows("sample", num_rows, self._max_rows)
        out.check("sample", num_rows)
        check_buffer("sample logits", logits, (num_rows, self._vocab_size), FLOAT32)
        check_buffer("sample slots", slots, (num_rows,), INT32)
        check_buffer("sample positions", positions, (num_rows,), INT32)
        if adjusted is not None:
            check_buffer("sample adjusted", adjusted, (None, self._vocab_size), FLOAT32)
        inputs = (
            logits, adjusted, slots, positions, columns.temperature, columns.top_p, columns.min_p, columns.top_k,
            columns.seed, columns.completion_index, columns.rule_row, np.int32(self._vocab_size),
        )  # fmt: skip
        chosen = (out.token_ids, out.is_corrupt, out.slot_tokens)
        workspace = (self._row_max, self._records, self._counters)
        num_tiles, tile_size = self._tiles.cut(num_rows)
        arguments = (*chosen, *workspace, *inputs, np.int32(tile_size))
        self._device.launch(self._sample, (num_tiles, num_rows, 1), (self._threads, 1, 1), arguments, pdl=self._pdl)
        if may_cut:
            cut = (out.token_ids, out.slot_tokens, self._row_max, *inputs)
            self._device.launch(self._cut, (num_rows, 1, 1), (self._cut_threads, 1, 1), cut, pdl=self._pdl)


def check_vocab_size(op: str, vocab_size: int) -> None:
    """Return if ids of the vocabulary fit in a place.

    Raises:
        ShapeError: they do not.
    """
    if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise ShapeError(f"{op}: the vocabulary has {vocab_size} tokens, the kernel takes 1 to {MAX_VOCAB_SIZE}")
