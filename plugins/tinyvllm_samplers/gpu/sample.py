"""Launches ``sample.cu`` and ``sample_cut.cu``: one token a row, greedy or drawn at random."""

from __future__ import annotations

import numpy as np

from tinyvllm.device import FLOAT32, INT32, Dim3, Function
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import beside, check_buffer
from tinyvllm.ops.row_tiles import BLOCKS_PER_SM, RowTiles, check_rows, check_sampled
from tinyvllm.plugin import Buffer, Gpu, SampledBuffers, SlotParameters

MAX_VOCAB_SIZE = 2**20
"""A token's place in an order has 20 bits for its id."""
LIST_SIZE = 4096
"""Tokens of a row that may be kept and may not, once it is known in which of ``_NUM_BINS`` buckets the cuts are."""
_NUM_BINS = 2048
_RECORD_WORDS = 16
_PLAN_WORDS = 10


class Sample:
    """Temperature, ``min_p``, ``top_k`` and ``top_p`` as each row's slot says.

    Args:
        device: where it runs.
        vocab_size: ``V``, at most 2**20.
        max_rows: maximum number of rows of a call.
        threads: of a block, a power of two. loads: groups of four tokens that each has under way.
        num_blocks: of a launch; None: what the device holds at once. No token depends on it.
        list_size: tokens of a row that may be listed.
        pdl: the launches may overlap the end of their predecessors.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        vocab_size: int,
        max_rows: int,
        threads: int = 256,
        loads: int = 2,
        num_blocks: int | None = None,
        list_size: int = LIST_SIZE,
        pdl: bool = True,
    ) -> None:
        check_vocab_size("sample", vocab_size)
        self._device, self._vocab_size, self._max_rows, self._pdl = device, vocab_size, max_rows, pdl
        self._threads = threads
        self._tiles = RowTiles.of(device, vocab_size, threads, loads, num_blocks)
        defines = {**self._tiles.defines, "MIN_BLOCKS": BLOCKS_PER_SM}
        self._sample = device.compile(beside(__file__, "sample.cu"), defines).function("sample_rows")
        module = device.compile(beside(__file__, "sample_cut.cu"), {**defines, "LIST_SIZE": list_size})
        self._weigh, self._race, self._draw = map(module.function, ("weigh_rows", "race_kept", "draw_kept"))
        alloc = device.memory.alloc
        self._row_max = alloc((max_rows,), np.float32)
        self._records = alloc((max_rows, self._tiles.most, _RECORD_WORDS), np.uint32)
        self._plans = alloc((max_rows, _PLAN_WORDS), np.uint32)
        self._places = alloc((max_rows, list_size), np.uint64)
        self._counters = alloc((max_rows,), np.uint32)
        self._sums = alloc((max_rows, 2, _NUM_BINS), np.uint64)
        device.memory.fill(self._counters, 0)
        device.memory.fill(self._sums, 0)

    def __call__(
        self,
        out: SampledBuffers,
        logits: Buffer,
        columns: SlotParameters,
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
            may_cut: False promises that no row has ``min_p``, ``top_k`` or ``top_p``, and saves three launches.
        Raises:
            ShapeError: a buffer has another shape or dtype, or there are more rows than announced.
        """
        num_rows = logits.shape[0]
        check_rows("sample", num_rows, self._max_rows)
        check_sampled("sample", out, num_rows)
        check_buffer("sample logits", logits, (num_rows, self._vocab_size), FLOAT32)
        check_buffer("sample slots", slots, (num_rows,), INT32)
        check_buffer("sample positions", positions, (num_rows,), INT32)
        if adjusted is not None:
            check_buffer("sample adjusted", adjusted, (None, self._vocab_size), FLOAT32)
        inputs = (
            logits, adjusted, slots, positions, columns.temperature, columns.top_p, columns.min_p, columns.top_k,
            columns.seed, columns.completion_index, columns.rule_row, np.int32(self._vocab_size),
        )  # fmt: skip
        num_tiles, tile_size = self._tiles.cut(num_rows)
        records, counters, row_max = self._records, self._counters, self._row_max

        def launch(function: Function, grid: Dim3, outputs: tuple[Buffer, ...], size: int) -> None:
            arguments = (*outputs, *inputs, np.int32(size))
            self._device.launch(function, grid, (self._threads, 1, 1), arguments, pdl=self._pdl)

        tiles = (num_tiles, num_rows, 1)
        token_ids = out.token_ids
        launch(self._sample, tiles, (token_ids, out.is_corrupt, row_max, records, counters), tile_size)
        if may_cut:
            plans, places = self._plans, self._places
            launch(self._weigh, tiles, (plans, self._sums, counters, token_ids, row_max), tile_size)
            launch(self._race, tiles, (plans, places, records, row_max), tile_size)
            launch(self._draw, (num_rows, 1, 1), (token_ids, plans, places, records, row_max), num_tiles)


def check_vocab_size(op: str, vocab_size: int) -> None:
    """Return if ids of the vocabulary fit in a place.

    Raises:
        ShapeError: they do not.
    """
    if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise ShapeError(f"{op}: the vocabulary has {vocab_size} tokens, the kernel takes 1 to {MAX_VOCAB_SIZE}")
