"""Rules of requests on the device: their parameters and ragged lists, and the state that moves with each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.device import FLOAT32, INT32
from tinyvllm.plugin import Buffer, CapacityError, Gpu
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import Int32


@dataclass(frozen=True, slots=True)
class RowRules:
    """What applies to one sequence; ids in rising order."""

    params: SamplingParams
    allowed: Int32
    end: Int32
    bias_ids: Int32
    bias_values: NDArray[np.float32]
    words: Sequence[Sequence[int]]

    @classmethod
    def of(cls, params: SamplingParams, rules: SamplingRules) -> RowRules:
        """The rules of a request."""
        bias = sorted((params.logit_bias or {}).items())
        end = {*rules.eos_token_ids, *(params.stop_token_ids or ())} if params.min_tokens else ()
        return cls(
            params,
            allowed=np.array(sorted(params.allowed_token_ids or ()), np.int32),
            end=np.array(sorted(end), np.int32),
            bias_ids=np.array([token_id for token_id, _ in bias], np.int32),
            bias_values=np.array([value for _, value in bias], np.float32),
            words=rules.bad_words_token_ids,
        )


_NONE = RowRules.of(SamplingParams(), SamplingRules())


@dataclass(frozen=True, slots=True)
class Ragged:
    """Lists of ``R`` rows on the device: ``values[offsets[r]:offsets[r + 1]]`` is row ``r``'s."""

    what: str
    device: Gpu = field(repr=False)
    offsets: Buffer
    values: Buffer

    @classmethod
    def allocate(cls, what: str, device: Gpu, num_rows: int, capacity: int, dtype: np.dtype[Any]) -> Ragged:
        """Room for ``num_rows`` lists of ``capacity`` values in all."""
        alloc = device.memory.alloc
        return cls(what, device, alloc((num_rows + 1,), INT32), alloc((max(1, capacity),), dtype))

    def check(self, lists: Sequence[Any]) -> None:
        """Return if there is room for them; raises CapacityError."""
        size, capacity = sum(map(len, lists)), self.values.shape[0]
        if size > capacity or len(lists) >= self.offsets.shape[0]:
            raise CapacityError(
                f"{self.what}: {size} entries in {len(lists)} lists, the device has room for {capacity} in "
                f"{self.offsets.shape[0] - 1}; raise it or run fewer such requests at once"
            )

    def upload(self, lists: Sequence[Any]) -> None:
        """Queue the copy of all lists; those past the last are empty."""
        offsets = np.zeros(self.offsets.shape, np.int32)
        offsets[1 : len(lists) + 1] = np.cumsum([len(each) for each in lists])
        offsets[len(lists) + 1 :] = offsets[len(lists)]
        size = int(offsets[-1])
        self.device.memory.upload(self.offsets, offsets)
        if size:
            values = np.concatenate([np.asarray(each, self.values.dtype) for each in lists if len(each)])
            self.device.memory.upload(self.values.view((size,)), values)


class RuleState:
    """Rules and state of ``R`` rule rows; a sequence with rules holds one of them from its start to its end.

    Parameters and lists are written by the host and change only as sequences come and go; ``counts``, ``num_output``
    and ``recent`` are written by the kernels alone (:class:`tinyvllm_samplers.gpu.penalties.Penalties`).

    Args:
        device: where it lies.
        num_rows: ``R``; ``4 R V`` bytes for the counts, and as many for the adjusted logits.
        vocab_size: ``V``.
        window: ``W``, generated tokens that are remembered for bad words: one less than the longest word.
        capacity: entries of each kind of list, of all rows together.
    """

    def __init__(
        self, device: Gpu, *, num_rows: int, vocab_size: int, window: int = 32, capacity: int = 1 << 16
    ) -> None:
        alloc = device.memory.alloc
        self.num_rows, self.vocab_size, self.window = num_rows, vocab_size, window
        self._device = device
        self._rules = [_NONE] * num_rows
        self.counts = alloc((num_rows, vocab_size), np.uint32)
        self.num_output = alloc((num_rows,), INT32)
        self.recent = alloc((num_rows, window), INT32)
        self.presence = alloc((num_rows,), FLOAT32)
        self.frequency = alloc((num_rows,), FLOAT32)
        self.repetition = alloc((num_rows,), FLOAT32)
        self.min_tokens = alloc((num_rows,), INT32)
        self.allowed = Ragged.allocate("allowed_token_ids", device, num_rows, capacity, INT32)
        self.end = Ragged.allocate("stop_token_ids before min_tokens", device, num_rows, capacity, INT32)
        self.bias_ids = Ragged.allocate("logit_bias", device, num_rows, capacity, INT32)
        self.bias_values = Ragged.allocate("logit_bias", device, num_rows, capacity, FLOAT32)
        self.words = Ragged.allocate("bad_words", device, capacity, capacity, INT32)
        self.row_words = alloc((num_rows + 1,), INT32)
        self.upload()

    def set(self, rule_row: int, params: SamplingParams, rules: SamplingRules) -> None:
        """Give a row to a sequence. On the host; :meth:`upload` follows, and ``Penalties.start`` for the state.

        Raises:
            CapacityError: the lists do not fit, or a bad word is longer than the window and one; nothing is changed.
        """
        wanted = RowRules.of(params, rules)
        longest = max(map(len, wanted.words), default=1)
        if longest > self.window + 1:
            raise CapacityError(
                f"bad_words: a word of {longest} tokens, the device remembers {self.window}; make the window larger"
            )
        after = [*self._rules]
        after[rule_row] = wanted
        for ragged, lists in self._lists(after):
            ragged.check(lists)
        self._rules = after

    def clear(self, rule_row: int) -> None:
        """Take a row back."""
        self._rules[rule_row] = _NONE

    def upload(self) -> None:
        """Queue the copy of parameters and lists to the device."""
        upload, all_params = self._device.memory.upload, [each.params for each in self._rules]
        upload(self.presence, np.array([p.presence_penalty for p in all_params], np.float32))
        upload(self.frequency, np.array([p.frequency_penalty for p in all_params], np.float32))
        upload(self.repetition, np.array([p.repetition_penalty for p in all_params], np.float32))
        upload(self.min_tokens, np.array([p.min_tokens for p in all_params], np.int32))
        for ragged, lists in self._lists(self._rules):
            ragged.upload(lists)
        upload(self.row_words, np.cumsum([0, *(len(each.words) for each in self._rules)]).astype(np.int32))

    def _lists(self, rules: Sequence[RowRules]) -> list[tuple[Ragged, Sequence[Any]]]:
        return [
            (self.allowed, [each.allowed for each in rules]),
            (self.end, [each.end for each in rules]),
            (self.bias_ids, [each.bias_ids for each in rules]),
            (self.bias_values, [each.bias_values for each in rules]),
            (self.words, [word for each in rules for word in each.words]),
        ]
