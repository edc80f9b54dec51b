"""Sampling on a device: which sequences it can serve there, their parameters by slot, and the kernels of a step.

The tokens of a step are the same as those of the plugin ``default`` on the CPU: one definition, two implementations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyvllm.batch import NO_LOGPROBS, Int32, LogprobColumns, Sampled, SamplingRows
from tinyvllm.device import INT32, Buffer, Download, Gpu
from tinyvllm.kernels.host_ring import HostCopy, HostRing
from tinyvllm.kernels.logprobs import MAX_LISTED, LogprobBuffers, Logprobs
from tinyvllm.kernels.penalties import Penalties
from tinyvllm.kernels.sample import Sample
from tinyvllm.kernels.sample_columns import NO_RULES, DeviceSamplingColumns, SampledBuffers
from tinyvllm.kernels.sample_rules import RowRules, RuleState
from tinyvllm.ops.buffers import round_up
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.inputs import SampledRows
from tinyvllm.sequence import SequenceTokens
from tinyvllm.step import Started

DEVICE_SAMPLER = "default"
"""Name of the sampler plugin that these kernels implement; any other samples on the host."""
_ENTRIES_PER_SEQUENCE = 256
_WINDOW = 32


@dataclass(frozen=True, slots=True)
class SamplingMode:
    """Which kernels the rows of a step need.

    Attributes:
        is_greedy: nothing but the most likely token of each.
        may_cut: some row has ``top_k``, ``top_p`` or ``min_p``.
        has_rules: some row has penalties, biases or masks.
        num_listed: log-probabilities beside the chosen token's; None: nobody asked.
    """

    is_greedy: bool
    may_cut: bool
    has_rules: bool
    num_listed: int | None

    @classmethod
    def of(cls, rows: SamplingRows) -> SamplingMode:
        """What these rows need."""
        most = int(rows.num_logprobs.max())
        num_listed = None if most == NO_LOGPROBS else 1 << max(most - 1, 0).bit_length() if most else 0
        has_rules = bool(rows.has_rules.any())
        is_plain = not has_rules and num_listed is None
        return cls(
            is_greedy=is_plain and not rows.temperature.any(),
            may_cut=bool(((rows.top_p < 1) | (rows.top_k > 0) | (rows.min_p > 0)).any()),
            has_rules=has_rules,
            num_listed=num_listed,
        )


class DeviceSampling:
    """The kernels and what they keep between steps.

    Args:
        device: where it runs.
        vocab_size: ``V``.
        num_slots: most sequences that run at once.
        max_rows: most rows whose logits are there at once.
        max_context_len: of a sequence.
        is_chosen: whether the configuration chose the sampler that these kernels implement.

    Attributes:
        is_chosen: as above; otherwise nothing is sampled here.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        vocab_size: int,
        num_slots: int,
        max_rows: int,
        max_context_len: int,
        is_chosen: bool = True,
    ) -> None:
        self._device, self._vocab_size, self._num_slots = device, vocab_size, num_slots
        self._max_context_len, self.is_chosen = max_context_len, is_chosen
        self._columns = DeviceSamplingColumns(device, num_slots)
        self._is_served = np.ones(num_slots, bool)  # by slot
        self._is_uploaded = False
        self._sample = Sample(device, vocab_size=vocab_size, max_rows=max_rows)
        alloc = device.memory.alloc
        # All scratch now, before the KV cache is sized: nothing runs out of memory when a first penalty comes.
        self._rules = _Rules(device, num_slots, vocab_size, max_context_len)
        self._logprobs = Logprobs(device, vocab_size=vocab_size)
        self._listed = LogprobBuffers.allocate(device, num_slots, min(MAX_LISTED, vocab_size))
        # Token ids first, then a byte each that says whether the logits were corrupt: one copy brings both down.
        self._chosen = alloc((round_up(5 * num_slots, 4),), np.uint8)
        self.token_ids = self._chosen.view((num_slots,), INT32)
        """By row of a step, what it chose: for the end of that step alone."""
        self.newest = alloc((num_slots,), INT32)
        """``[S]``, int32, by slot: the sequence's newest token. A token that the host has not seen is nowhere else."""
        device.memory.fill(self._chosen, 0)
        device.memory.fill(self.newest, 0)
        self._on_host = HostRing(device, self._chosen, self.newest)

    def can_sample(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Whether a sequence with these parameters can be sampled here; if not, the host does it."""
        if not self.is_chosen:
            return False
        if params.logprobs is not None and not 0 <= params.logprobs <= min(MAX_LISTED, self._vocab_size):
            return False
        if not params.has_rules:
            return True
        row = RowRules.of(params, rules)
        sizes = (row.allowed, row.end, row.bias_ids, row.words, [token for word in row.words for token in word])
        longest = max(map(len, row.words), default=1)
        return max(map(len, sizes)) <= _ENTRIES_PER_SEQUENCE and longest <= _WINDOW + 1

    def start(self, started: Started) -> None:
        """Take the parameters of sequences that have been given a slot."""
        rows = started.sampling
        is_served = np.array([self.can_sample(tokens.params, tokens.rules) for tokens in started.tokens])
        self._is_served[started.slots] = is_served
        has_rules: list[bool] = (rows.has_rules & is_served).tolist()
        self._columns.write(started.slots, rows, np.where(has_rules, started.slots, NO_RULES).astype(np.int32))
        self._is_uploaded = False
        self._rules.start(started.slots, started.tokens, has_rules)

    def upload(self) -> None:
        """Queue the copy of parameters that the device has not got yet, if there are any; before what reads them."""
        if not self._is_uploaded:
            self._columns.upload()
            self._is_uploaded = True

    def can_sample_all(self, slots: Int32) -> bool:
        """Whether the sequences in these slots can all be sampled here."""
        return bool(self._is_served.take(slots).all())

    def queue(self, mode: SamplingMode, logits: Buffer, rows: SampledRows, first: int) -> None:
        """Queue the choice of a token for each row.

        Args:
            mode: what the rows need.
            logits: ``[n, V]``, float32, raw.
            rows: slots and positions of the ``n`` rows.
            first: place of the first row among the step's sampled.
        """
        num_rows, slots, positions = rows.num_rows, rows.slots, rows.positions
        out = SampledBuffers(
            self._chosen.view((num_rows,), INT32, first * 4),
            self._chosen.view((num_rows,), np.uint8, 4 * self._num_slots + first),
        )
        adjusted = None
        if mode.has_rules:
            adjusted = self._rules.penalties.adjusted
            self._rules.penalties.apply(logits, self._columns, slots)
        self._sample(out, logits, self._columns, slots, positions, adjusted=adjusted, may_cut=mode.may_cut)
        if mode.has_rules:
            self._rules.penalties.record(out.token_ids, self._columns, slots)
        if mode.num_listed is not None:
            part = _rows_of(self._listed_by(mode.num_listed), first, num_rows)
            self._logprobs(part, logits, out.token_ids, slots, self._columns.num_logprobs)

    def take(self, token_ids: Int32, slots: Buffer) -> None:
        """Count tokens that the host has chosen, as if they had been chosen here."""
        chosen = self.token_ids.view(token_ids.shape)
        self._device.memory.upload(chosen, token_ids)
        self.upload()
        self._rules.penalties.record(chosen, self._columns, slots)

    def queue_end(self, slots: Buffer) -> None:
        """Queue the end of a step: its tokens become the newest of their slots, and go to the host.

        Args:
            slots: ``[B]``, int32, of the step's sampled rows; below zero for padding.
        """
        self._on_host.queue(slots)

    def recover(self) -> None:
        """Be ready for the next step after one has failed. Waits."""
        self._on_host.recover()
        self._is_uploaded = False

    def pending(self, mode: SamplingMode, num_rows: int, *, has_flags: bool) -> PendingTokens:
        """The tokens of the step just queued, or replayed. Without flags, one below zero had corrupt logits."""
        download = self._device.memory.start_download
        listed: list[Download] = []
        if mode.num_listed is not None:
            part = _rows_of(self._listed_by(mode.num_listed), 0, num_rows)
            listed = [download(part.token_ids), download(part.logprobs), download(part.rank)]
        return PendingTokens(self._on_host.last(), listed, num_rows, self._num_slots if has_flags else None)

    def _listed_by(self, num_listed: int) -> LogprobBuffers:
        """The buffers of log-probabilities as they are for so many columns beside the chosen token's."""
        width = 1 + min(num_listed, self._vocab_size)
        shape = (self._num_slots, width)
        listed = self._listed
        return LogprobBuffers(listed.token_ids.view(shape), listed.logprobs.view(shape), listed.rank)


@dataclass(frozen=True, slots=True)
class PendingTokens:
    """Tokens on their way to the host; ``num_slots`` is None where no flags come with them."""

    chosen: HostCopy
    listed: Sequence[Download]
    num_rows: int
    num_slots: int | None

    def wait(self) -> Sampled:
        """Them, once they are there."""
        chosen = self.chosen.wait()
        token_ids = chosen[: 4 * self.num_rows].view(np.int32)
        flags = None if self.num_slots is None else chosen[4 * self.num_slots :][: self.num_rows].view(bool)
        is_corrupt = token_ids < 0 if flags is None else flags
        columns = LogprobColumns(*(each.wait() for each in self.listed)) if self.listed else None
        return Sampled(token_ids, columns, is_corrupt if is_corrupt.any() else None)


class _Rules:
    """State of sequences with rules: the rule row of a sequence is its slot."""

    def __init__(self, device: Gpu, num_slots: int, vocab_size: int, max_context_len: int) -> None:
        self._device = device
        self._state = RuleState(
            device,
            num_rows=num_slots,
            vocab_size=vocab_size,
            window=_WINDOW,
            capacity=num_slots * _ENTRIES_PER_SEQUENCE,
        )
        self.penalties = Penalties(device, self._state)
        self._tokens = device.memory.alloc((max_context_len,), INT32)
        self._in_use: set[int] = set()  # slots whose rule row holds rules

    def start(self, slots: Int32, tokens: Sequence[SequenceTokens], has_rules: Sequence[bool]) -> None:
        if not any(has_rules) and self._in_use.isdisjoint(slots.tolist()):
            return  # as nearly always: nothing to send
        self._in_use -= set(slots.tolist())
        self._in_use |= {slot for slot, has in zip(slots.tolist(), has_rules, strict=True) if has}
        for slot, each, has in zip(slots.tolist(), tokens, has_rules, strict=True):
            if has:
                self._state.set(slot, each.params, each.rules)
            else:
                self._state.clear(slot)
        self._state.upload()
        for slot, each, has in zip(slots.tolist(), tokens, has_rules, strict=True):
            if has:
                known = self._tokens.view((each.num_tokens,))
                self._device.memory.upload(known, each.all)
                self.penalties.start(slot, known, each.num_prompt_tokens)


def _rows_of(buffers: LogprobBuffers, first: int, num_rows: int) -> LogprobBuffers:
    arrays = (buffers.token_ids, buffers.logprobs, buffers.rank)
    return LogprobBuffers(*(each[first : first + num_rows] for each in arrays))
