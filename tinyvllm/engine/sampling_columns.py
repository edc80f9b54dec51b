"""The sampling parameters of running sequences as columns by slot, gathered into the rows of a step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import NO_LOGPROBS, ROW_COLUMNS, SamplingRows
from tinyvllm.request import SAMPLING_COLUMNS, SamplingParams
from tinyvllm.shapes import Int32

_COLUMNS = {name: dtype for name, dtype in ROW_COLUMNS.items() if name != "position"}  # which every step has anew


class SamplingColumns:
    """One row a slot, written when a sequence starts."""

    def __init__(self, max_num_seqs: int) -> None:
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros(max_num_seqs, dtype) for name, dtype in _COLUMNS.items()
        }
        self._last: tuple[Int32, dict[str, NDArray[Any]]] | None = None  # slots and what was gathered for them

    def set(self, slot: int, params: SamplingParams, seed: int, completion_index: int) -> None:
        """Write the parameters of the sequence that starts in ``slot``."""
        self._last = None
        for name in SAMPLING_COLUMNS:
            self._columns[name][slot] = getattr(params, name)
        self._columns["seed"][slot] = seed
        self._columns["completion_index"][slot] = completion_index
        self._columns["num_logprobs"][slot] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        self._columns["has_rules"][slot] = params.has_rules

    def gather(self, slots: Int32, positions: Int32) -> SamplingRows:
        """The rows of a step that samples in ``slots`` for tokens at ``positions``, ``[B]`` each.

        They are read-only: a plugin reads them, and the next step gets them again.
        """
        # The same slots as in the step before is the usual case.
        last = self._last
        if last is None or (slots is not last[0] and not np.array_equal(slots, last[0])):
            gathered = {name: column.take(slots) for name, column in self._columns.items()}
            for column in gathered.values():
                column.flags.writeable = False
            last = self._last = (slots, gathered)
        return SamplingRows(position=positions, **last[1])
