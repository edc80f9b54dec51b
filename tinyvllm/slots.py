"""What sampling reads and writes on a GPU: parameters by slot, and the buffers of its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import ROW_COLUMNS, SamplingRows
from tinyvllm.device import INT32, Buffer, Gpu
from tinyvllm.shapes import Int32

NO_RULES = -1
"""In ``rule_row``: no penalty, bias or mask applies."""

_COLUMNS = {name: dtype for name, dtype in ROW_COLUMNS.items() if name not in ("position", "has_rules")}
_COLUMNS["rule_row"] = INT32
_FROM_ROWS = tuple(name for name in _COLUMNS if name != "rule_row")


class SlotParameters:
    """The parameters of ``S`` slots: on the host, and a copy on the device that kernels read.

    The columns lie in one allocation, so that a change is one copy. Call :meth:`upload` after :meth:`write`.

    Each column of :class:`tinyvllm.batch.SamplingRows` but ``position`` and ``has_rules`` is an attribute, ``[S]``.

    Attributes:
        rule_row: ``[S]``, int32; the slot again where penalties, biases or masks apply, or ``NO_RULES``.
    """

    def __init__(self, device: Gpu, num_slots: int) -> None:
        size_bytes = num_slots * sum(dtype.itemsize for dtype in _COLUMNS.values())
        self.num_slots = num_slots
        self._device = device
        self._block = device.memory.alloc((size_bytes,), np.uint8)
        self._host = np.zeros(size_bytes, np.uint8)
        self._host_columns: dict[str, NDArray[Any]] = {}
        buffers: dict[str, Buffer] = {}
        offset = 0
        # The widest first, so that each column begins at a multiple of its own width.
        for name, dtype in sorted(_COLUMNS.items(), key=lambda column: -column[1].itemsize):
            end = offset + num_slots * dtype.itemsize
            self._host_columns[name] = self._host[offset:end].view(dtype)
            buffers[name] = self._block.view((num_slots,), dtype, offset)
            offset = end
        self._buffers = buffers

    def __getattr__(self, name: str) -> Buffer:
        """The column ``name`` on the device."""
        try:
            return self._buffers[name]
        except KeyError:
            known = ", ".join(_COLUMNS)
            raise AttributeError(f"no sampling parameter {name!r} is uploaded; there are {known}") from None

    def write(self, slots: Int32, rows: SamplingRows, rule_rows: Int32 | int = NO_RULES) -> None:
        """Set the parameters of some slots, on the host.

        Args:
            slots: ``[n]``.
            rows: ``n`` rows; ``position`` means nothing.
            rule_rows: ``[n]``, or one for all.
        """
        for name in _FROM_ROWS:
            self._host_columns[name][slots] = getattr(rows, name)
        self._host_columns["rule_row"][slots] = rule_rows

    def upload(self) -> None:
        """Queue the copy to the device: launches from now on see what was written."""
        self._device.memory.upload(self._block, self._host)


@dataclass(frozen=True, slots=True)
class SampledBuffers:
    """Where chosen tokens go.

    Attributes:
        token_ids: ``[B]``, int32, by row of the step.
        is_corrupt: ``[B]``, uint8; 1 where the logits leave nothing to choose. The token is then 0.
    """

    token_ids: Buffer
    is_corrupt: Buffer

    @classmethod
    def allocate(cls, device: Gpu, num_rows: int) -> SampledBuffers:
        """Buffers for steps of ``num_rows``."""
        alloc = device.memory.alloc
        return cls(alloc((num_rows,), np.int32), alloc((num_rows,), np.uint8))


@dataclass(frozen=True, slots=True)
class LogprobBuffers:
    """Where log-probabilities go, of ``B`` rows; see :class:`tinyvllm.batch.LogprobColumns`.

    Attributes:
        token_ids: ``[B, 1 + k]``, int32; the chosen token, then the most likely ones.
        logprobs: ``[B, 1 + k]``, float32.
        rank: ``[B]``, int32; of the chosen token, 1 for the most likely.
    """

    token_ids: Buffer
    logprobs: Buffer
    rank: Buffer

    @classmethod
    def allocate(cls, device: Gpu, num_rows: int, num_listed: int) -> LogprobBuffers:
        """Buffers for ``num_rows`` rows of the chosen token and ``num_listed`` others."""
        alloc = device.memory.alloc
        shape = (num_rows, 1 + num_listed)
        return cls(alloc(shape, np.int32), alloc(shape, np.float32), alloc((num_rows,), np.int32))
