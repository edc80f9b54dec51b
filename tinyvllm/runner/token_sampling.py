"""Tokens chosen on a GPU: the parameters by slot, the buffers of a step's results, and how these come to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyvllm.batch import LogprobColumns, Sampled, SamplingRows
from tinyvllm.device import INT32, Buffer, Download, Gpu
from tinyvllm.interfaces import GpuSampleCall, SampleKind
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.checked_sampler import CheckedGpuSampler, CheckedHostSampler
from tinyvllm.runner.host_ring import HostCopy, HostRing
from tinyvllm.runner.inputs import SampledRows
from tinyvllm.shapes import Int32
from tinyvllm.slots import NO_RULES, LogprobBuffers, SampledBuffers, SlotParameters
from tinyvllm.step import Started
from tinyvllm.workspace import StepLimits

MAX_LISTED = 64
"""Log-probabilities beside the chosen token's for which there is room; who asks for more is sampled on the host."""


class TokenSampling:
    """What a sampler on a GPU works with, and what it leaves behind.

    Args:
        device: where it runs.
        sampler: the plugin's.
        vocab_size: ``V``.
        limits: of a step.
        newest: ``[S]``, int32, by slot: the sequence's newest token.

    Attributes:
        token_ids: ``[S]``, int32, by row of a step: what it chose. It means nothing once the step has ended.
    """

    def __init__(
        self, device: Gpu, sampler: CheckedGpuSampler, vocab_size: int, limits: StepLimits, newest: Buffer
    ) -> None:
        num_slots = limits.max_seqs
        self._device, self._sampler, self._vocab_size, self._num_slots = device, sampler, vocab_size, num_slots
        self._parameters = SlotParameters(device, num_slots)
        self._is_served = np.ones(num_slots, bool)  # by slot
        self._is_uploaded = False
        self._listed = LogprobBuffers.allocate(device, num_slots, min(MAX_LISTED, vocab_size))
        # Token ids first, then a byte each that says whether the logits were corrupt: one copy brings both down.
        self._chosen = device.memory.alloc((-(-5 * num_slots // 4) * 4,), np.uint8)
        self.token_ids = self._chosen.view((num_slots,), INT32)
        device.memory.fill(self._chosen, 0)
        self._on_host = HostRing(device, self._chosen, newest)

    def can_sample(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Whether a sequence with these parameters can be sampled here; if not, the host does it."""
        if params.logprobs is not None and not 0 <= params.logprobs <= min(MAX_LISTED, self._vocab_size):
            return False
        return self._sampler.can_sample(params, rules)

    def start(self, started: Started) -> None:
        """Take the parameters of sequences that have been given a slot."""
        is_served = np.array([self.can_sample(each.params, each.rules) for each in started.sequences])
        self._is_served[started.slots] = is_served
        has_rules = started.sampling.has_rules & is_served
        rule_rows = np.where(has_rules, started.slots, NO_RULES).astype(np.int32)
        self._parameters.write(started.slots, started.sampling, rule_rows)
        self._is_uploaded = False
        self._sampler.start(started)

    @property
    def host(self) -> CheckedHostSampler | None:
        """What samples on the host the sequences that the sampler cannot."""
        return self._sampler.host

    def kind(self, rows: SamplingRows) -> SampleKind:
        """Which work such rows need."""
        return self._sampler.kind(rows)

    def kind_of(self, rows: SamplingRows, slots: Int32) -> SampleKind | None:
        """Which work the rows of these slots need; None: some of them can only be sampled on the host."""
        return self._sampler.kind(rows) if self._is_served.take(slots).all() else None

    def upload(self) -> None:
        """Queue the copy of parameters that the device has not got yet, if there are any; before what reads them."""
        if not self._is_uploaded:
            self._parameters.upload()
            self._is_uploaded = True

    def queue(self, kind: SampleKind, logits: Buffer, rows: SampledRows, first: int) -> None:
        """Queue the choice of a token for each row.

        Args:
            kind: what the rows need.
            logits: ``[n, V]``, float32, raw.
            rows: slots and positions of the ``n`` rows.
            first: place of the first row among the step's sampled.
        """
        num_rows = rows.num_rows
        out = SampledBuffers(
            self._chosen.view((num_rows,), INT32, first * 4),
            self._chosen.view((num_rows,), np.uint8, 4 * self._num_slots + first),
        )
        listed = None if kind.num_listed is None else _rows_of(self._listed_by(kind.num_listed), first, num_rows)
        self._sampler.sample(GpuSampleCall(kind, logits, rows.slots, rows.positions, self._parameters, out, listed))

    def take(self, token_ids: Int32, slots: Buffer) -> None:
        """Record tokens that the host has chosen, as if they had been chosen here."""
        chosen = self.token_ids.view(token_ids.shape)
        self._device.memory.upload(chosen, token_ids)
        self.upload()
        self._sampler.record(chosen, self._parameters, slots)

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

    def pending(self, kind: SampleKind, num_rows: int, *, has_flags: bool) -> PendingTokens:
        """The tokens of the step just queued, or replayed. Without flags, one below zero had corrupt logits."""
        download = self._device.memory.start_download
        listed: list[Download] = []
        if kind.num_listed is not None:
            part = _rows_of(self._listed_by(kind.num_listed), 0, num_rows)
            listed = [download(part.token_ids), download(part.logprobs), download(part.rank)]
        flags_start = 4 * self._num_slots if has_flags else None
        return PendingTokens(self._on_host.last(), listed, num_rows, flags_start, self._sampler)

    def _listed_by(self, num_listed: int) -> LogprobBuffers:
        """The buffers of log-probabilities as they are for so many columns beside the chosen token's."""
        shape = (self._num_slots, 1 + min(num_listed, self._vocab_size))
        listed = self._listed
        return LogprobBuffers(listed.token_ids.view(shape), listed.logprobs.view(shape), listed.rank)


@dataclass(frozen=True, slots=True)
class PendingTokens:
    """Tokens on their way to the host.

    Attributes:
        chosen: the copy of what was chosen.
        listed: the columns of log-probabilities; none if nobody asked.
        num_rows: how many tokens.
        flags_start: where the flags begin in ``chosen``, in bytes; None: there are none.
        sampler: whose tokens they are.
    """

    chosen: HostCopy
    listed: Sequence[Download]
    num_rows: int
    flags_start: int | None
    sampler: CheckedGpuSampler

    def wait(self) -> Sampled:
        """Them, once they are there.

        Raises:
            PluginError: one of them is no token of the vocabulary.
        """
        chosen = self.chosen.wait()
        token_ids = chosen[: 4 * self.num_rows].view(np.int32)
        flags = None if self.flags_start is None else chosen[self.flags_start :][: self.num_rows].view(bool)
        is_corrupt = token_ids < 0 if flags is None else flags
        self.sampler.check_tokens(token_ids, is_corrupt)
        columns = LogprobColumns(*(each.wait() for each in self.listed)) if self.listed else None
        return Sampled(token_ids, columns, is_corrupt if is_corrupt.any() else None)


def _rows_of(buffers: LogprobBuffers, first: int, num_rows: int) -> LogprobBuffers:
    arrays = (buffers.token_ids, buffers.logprobs, buffers.rank)
    return LogprobBuffers(*(each[first : first + num_rows] for each in arrays))
