"""The arrays of a step on a GPU: buffers that stay put, so that a graph needs no new arguments; one copy a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import numpy as np

from tinyvllm.batch import Batch, BatchTensors
from tinyvllm.device import INT32, Buffer, Gpu
from tinyvllm.interfaces import BoundAttention
from tinyvllm.ops.buffers import ceil_div, round_up
from tinyvllm.runner.prompt_graphs import StepSize
from tinyvllm.runner.step_inputs import HEADER_SIZE, StepArrays, StepInputs
from tinyvllm.shapes import Array, Int32
from tinyvllm.step import Step, TableUpdates
from tinyvllm.workspace import StepLimits

_ALIGNMENT = 64
"""Elements: each array begins at a multiple of 256 bytes."""
_MAX_KEPT = 64
_NONE = np.zeros(0, np.int32)
_NO_UPDATES = TableUpdates(_NONE, _NONE, _NONE)
_NO_TOKENS = Batch(_NONE, _NONE, np.zeros(1, np.int32), _NONE, np.zeros((0, 1), np.int32), _NONE)
"""A step of padding alone, as the host sees it."""
_NO_SLOT = -1
_DECODE_PADDING = (0, 0, _NO_SLOT, 0, _NO_SLOT, 0)
"""Of token ids, positions, slot mapping, context lengths, slots and new positions."""


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Some of the rows that a step samples, where the model is.

    Attributes:
        rows: ``[n]``, int32, indices of the step's tokens; None: the first ``n``.
        slots, positions: ``[n]``, int32; slot -1 for padding; position that the new token will have.
    """

    rows: Array | None
    slots: Array
    positions: Array

    @property
    def num_rows(self) -> int:
        """``n``."""
        return int(self.slots.shape[0])

    def part(self, first: int, num_rows: int, counting: Buffer) -> SampledRows:
        """``num_rows`` of them, from ``first`` on; ``counting`` holds 0, 1, 2, ..."""
        if first == 0 and num_rows == self.num_rows:
            return self
        arrays = (self.rows or counting, self.slots, self.positions)
        return SampledRows(*(each[first : first + num_rows] for each in arrays))


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Where the arrays of a step lie.

    Attributes:
        batch: what the decoder takes.
        sampled: what sampling takes.
        host_plan: what the attention computed of the step's arrays on the host; None: nothing.
        updates: what is new in the block tables; see ``StepInputs``. None on the CPU, where they are whole.
    """

    batch: BatchTensors
    sampled: SampledRows
    host_plan: Array | None = None
    updates: Buffer | None = None


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where each array begins in the one buffer that goes up, in elements.

    Attributes:
        num_tokens, num_sequences: of the step, with padding.
        starts: of token ids, positions, slot mapping; context lengths; slots, positions, rows; cu_seqlens_q; host plan;
            updates.
    """

    num_tokens: int
    num_sequences: int
    starts: tuple[int, ...]

    @classmethod
    def of(cls, num_tokens: int, num_sequences: int, host_plan_size: int) -> _Layout:
        """The layout of a step of that size; any of its sequences may be sampled."""
        t, b = round_up(num_tokens, _ALIGNMENT), round_up(num_sequences, _ALIGNMENT)
        sizes = (t, t, t, b, b, b, b, round_up(num_sequences + 1, _ALIGNMENT), round_up(host_plan_size, _ALIGNMENT))
        return cls(num_tokens, num_sequences, tuple(accumulate(sizes, initial=0)))


class GpuInputs:
    """Copies each step's arrays to a GPU.

    Args:
        device: where to.
        limits: of a step.
        attention: asked for its host plan before each step.
    """

    def __init__(self, device: Gpu, limits: StepLimits, attention: BoundAttention) -> None:
        self._device, self._attention = device, attention
        self._padding_plan = attention.host_plan(_NO_TOKENS.read_only())
        self._max_blocks = ceil_div(limits.max_context_len, limits.block_size)
        self._updates_size = HEADER_SIZE + 3 * limits.max_seqs
        most = max(1, limits.max_seqs)
        size = self._layout(limits.max_tokens, most).starts[-1] + self._updates_size
        self._host = np.zeros(size, np.int32)
        self._buffer = device.memory.alloc((size,), INT32)
        self._tables = device.memory.alloc((limits.max_seqs, self._max_blocks), INT32)
        self._rows = device.memory.alloc((max(limits.max_logits_rows, limits.max_seqs),), INT32)
        self.counting = device.memory.alloc((most,), INT32)
        """``[most sequences]``, int32: 0, 1, 2, ..."""
        device.memory.upload(self.counting, np.arange(most, dtype=np.int32))
        self.newest = device.memory.alloc((limits.max_seqs,), INT32)
        """``[S]``, int32, by slot: the sequence's newest token. A token that the host has not seen is nowhere else."""
        device.memory.fill(self.newest, 0)
        self._complete = StepInputs(device)
        self._padded: dict[int, tuple[tuple[int, ...], StepTensors]] = {}  # by size of a decode step
        self._places = lru_cache(_MAX_KEPT)(self._find_places)

    def upload_decode(self, step: Step, size: int) -> StepTensors:
        """The arrays of a step of one token a sequence, all of them sampled, padded to ``size`` sequences.

        Args:
            step: the step.
            size: how many it is padded to.
        """
        starts, buffers = self._decode_places(size)
        batch = step.batch
        assert step.sampling is not None
        arrays = (
            batch.token_ids, batch.positions, batch.slot_mapping, batch.context_lens, step.slots,
            step.sampling.position,
        )  # fmt: skip
        self._put_rows(starts, arrays, batch.num_sequences, size)
        self._put_host_plan(starts[-2], batch)
        self._send(step, starts[-1])
        return buffers

    def upload_padding(self, size: int) -> StepTensors:
        """The arrays of a decode step of ``size`` rows of padding: it reads and writes no K, no V and no token."""
        starts, buffers = self._decode_places(size)
        self._put_rows(starts, (_NONE,) * 6, 0, size)
        self._put_host_plan(starts[-2], None)
        self._send(None, starts[-1])
        return buffers

    def upload_prompt_padding(self, size: StepSize, num_sampled: int) -> StepTensors:
        """The same for a step of that size that computes prompts; the sampled rows are the first ones."""
        starts, buffers = self._places(size, num_sampled, False)
        self._host[: starts[-1]] = 0  # no token belongs to a sequence
        self._host[starts[2] : starts[3]] = _NO_SLOT
        self._host[starts[4] : starts[5]] = _NO_SLOT
        self._put_host_plan(starts[-2], None)
        self._send(None, starts[-1])
        return buffers

    def upload(self, step: Step, size: StepSize | None = None) -> StepTensors:
        """The arrays of any step, padded to ``size``; the places of all but the sampled rows depend on that alone."""
        size = size or StepSize.of(step.batch)
        batch, host = step.batch, self._host
        starts, buffers = self._places(size, len(step.sampled), batch.is_decode_only)
        t, b = size.num_tokens, size.num_sequences
        new_positions = _NONE if step.sampling is None else step.sampling.position
        for start, values, padded, padding in (
            (starts[0], batch.token_ids, t, 0),
            (starts[1], batch.positions, t, 0),
            (starts[2], batch.slot_mapping, t, -1),
            (starts[3], batch.context_lens, b, 0),
            (starts[4], step.slots, 0, 0),
            (starts[5], new_positions, 0, 0),
            (starts[6], step.sampled_rows, 0, 0),
            (starts[7], batch.cu_seqlens_q, b + 1, batch.num_tokens),
        ):
            end = start + len(values)
            host[start:end] = values
            if end < start + padded:
                host[end : start + padded] = padding
        self._put_host_plan(starts[-2], batch)
        self._send(step, starts[-1])
        return buffers

    def complete(self, buffers: StepTensors, *, is_decode: bool) -> None:
        """Queue what the host did not fill in; see ``StepInputs``."""
        batch = buffers.batch
        assert buffers.updates is not None, "made by this class"
        arrays = StepArrays(batch.token_ids, batch.block_tables, buffers.updates)
        self._complete(arrays, self.newest, is_decode=is_decode)

    def upload_rows(self, indices: Int32) -> Buffer:
        """Indices of rows, on the device; until the next call."""
        buffer = self._rows.view((len(indices),))
        self._device.memory.upload(buffer, indices.astype(np.int32, copy=False))
        return buffer

    def _put_rows(self, starts: tuple[int, ...], arrays: tuple[Int32, ...], count: int, size: int) -> None:
        """Writes the ``count`` rows of a decode step, in order of ``_Layout``, and padding up to ``size``."""
        for start, values, padding in zip(starts, arrays, _DECODE_PADDING, strict=False):
            self._host[start : start + count] = values
            self._host[start + count : start + size] = padding

    def _put_host_plan(self, start: int, batch: Batch | None) -> None:
        """Writes what the attention computes of a step's arrays; ``batch`` None: of a step of padding."""
        plan = self._padding_plan
        if plan is not None and batch is not None:
            plan = self._attention.host_plan(batch.read_only())
        if plan is not None:
            self._host[start : start + len(plan)] = plan

    def _send(self, step: Step | None, updates_start: int) -> None:
        """Adds the updates of the block tables behind the arrays, and copies all that is in use."""
        updates = _NO_UPDATES if step is None else step.table_updates
        if updates is None:
            assert step is not None
            self._device.memory.upload_corner(self._tables, step.batch.block_tables)
            updates = _NO_UPDATES
        count, first = len(updates.rows), updates_start + HEADER_SIZE
        self._host[updates_start] = count
        if count:
            triples = self._host[first : first + 3 * count].reshape(count, 3)
            triples[:, 0], triples[:, 1], triples[:, 2] = updates.rows, updates.columns, updates.blocks
        num_sent = first + 3 * count
        self._device.memory.upload(self._part(0, num_sent), self._host[:num_sent])

    def _decode_places(self, size: int) -> tuple[tuple[int, ...], StepTensors]:
        """Where the arrays of a decode step of ``size`` rows begin on the host, and where they lie on the device."""
        if size not in self._padded:
            layout = self._layout(size, size)
            self._padded[size] = (layout.starts, self._buffers(layout, size, is_decode=True, are_all=True))
        return self._padded[size]

    def _find_places(self, size: StepSize, num_sampled: int, is_decode: bool) -> tuple[tuple[int, ...], StepTensors]:
        """Where the arrays of such a step begin on the host, and where they lie on the device."""
        layout = self._layout(size.num_tokens, size.num_sequences)
        buffers = self._buffers(layout, num_sampled, is_decode=is_decode, are_all=False)
        return layout.starts, replace(buffers, batch=replace(buffers.batch, has_decodes=size.has_decodes))

    def _buffers(self, layout: _Layout, num_sampled: int, *, is_decode: bool, are_all: bool) -> StepTensors:
        (
            token_ids, positions, slot_mapping, context_lens, slots, new_positions, rows, cu_seqlens_q, host_plan,
            updates,
        ) = layout.starts  # fmt: skip
        t, b, s = layout.num_tokens, layout.num_sequences, num_sampled
        batch = BatchTensors(
            token_ids=self._part(token_ids, t),
            positions=self._part(positions, t),
            slot_mapping=self._part(slot_mapping, t),
            context_lens=self._part(context_lens, b),
            block_tables=self._tables.view((b, self._max_blocks)),
            cu_seqlens_q=None if is_decode else self._part(cu_seqlens_q, b + 1),
        )
        sampled = SampledRows(
            None if are_all else self._part(rows, s), self._part(slots, s), self._part(new_positions, s)
        )
        plan = None if self._padding_plan is None else self._part(host_plan, len(self._padding_plan))
        return StepTensors(batch, sampled, plan, self._part(updates, self._updates_size))

    def _layout(self, num_tokens: int, num_sequences: int) -> _Layout:
        return _Layout.of(num_tokens, num_sequences, 0 if self._padding_plan is None else len(self._padding_plan))

    def _part(self, start: int, size: int) -> Buffer:
        return self._buffer.view((size,), offset_bytes=start * INT32.itemsize)
