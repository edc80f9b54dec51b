"""What ops on a device are given: the step's arrays, a layer's cache, the limits of a step, memory between kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy.typing as npt

from tinyvllm.device import BFLOAT16, Buffer, Gpu, Shape

DeviceCache: TypeAlias = tuple[Buffer, Buffer]
"""Key and value blocks of one layer, ``[num_blocks, K, block_size, D]`` bfloat16 each."""


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """The arrays of a step on the device; see :class:`~tinyvllm.batch.Batch`.

    Rows of padding have position 0, slot -1 and context length 0. With ``cu_seqlens_q`` they are rows of no sequence,
    behind its last entry, which sequences of padding repeat: they have no token. ``has_decodes`` may be false only if
    no sequence computes exactly one token: a step of prompts alone.
    """

    token_ids: Buffer
    positions: Buffer
    slot_mapping: Buffer
    context_lens: Buffer
    block_tables: Buffer
    cu_seqlens_q: Buffer | None  # None: every sequence computes one token
    has_decodes: bool = True

    @property
    def num_tokens(self) -> int:
        """``T``."""
        return self.token_ids.shape[0]


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What buffers are made for.

    Attributes:
        max_tokens: of a step.
        max_seqs: of a step.
        max_context_len: of a sequence.
        block_size: of the KV cache.
        max_logits_rows: rows whose logits are held at once.
        batch_invariant: a row's bits depend on its own sequence only.
    """

    max_tokens: int
    max_seqs: int
    max_context_len: int
    block_size: int
    max_logits_rows: int
    batch_invariant: bool


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """What attention of one layer must know besides the step.

    Attributes:
        sliding_window: positions that a query sees, itself included; None for all.
        is_first: of a step. Its kernel waits before it lets dependents go; so in the other layers the step's arrays
            are complete before a kernel can start, and a dependent launch may read them before it waits.
    """

    sliding_window: int | None
    is_first: bool


class Workspace:
    """A device, the limits of a step, and memory that lives as long as the engine. Made before the KV cache is sized.

    Args:
        device: where the ops run.
        limits: of a step.
    """

    def __init__(self, device: Gpu, limits: DeviceLimits) -> None:
        self.device, self.limits = device, limits
        self._buffers: dict[tuple[str, Shape, object], Buffer] = {}

    def buffer(self, name: str, shape: Shape, dtype: npt.DTypeLike = BFLOAT16) -> Buffer:
        """Memory between the kernels of one op: the same for the same name, shape and dtype, whichever op asks.

        An op may keep nothing in it from one call to the next. Ask while binding, not in a call.
        """
        key = (name, shape, dtype)
        if key not in self._buffers:
            self._buffers[key] = self.device.memory.alloc(shape, dtype)
        return self._buffers[key]


def first_rows(buffer: Buffer, num_rows: int) -> Buffer:
    """The first rows of a matrix."""
    return buffer.view((num_rows, buffer.shape[1]))


def rows_from(buffer: Buffer, first: int, num_rows: int) -> Buffer:
    """``num_rows`` rows of an array, from row ``first`` on."""
    row_bytes = buffer.nbytes // buffer.shape[0]
    return buffer.view((num_rows, *buffer.shape[1:]), offset_bytes=first * row_bytes)
