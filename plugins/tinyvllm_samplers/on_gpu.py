"""The sampler ``default`` on a GPU: the same tokens as on the CPU, by CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvllm.batch import NO_LOGPROBS
from tinyvllm.device import INT32
from tinyvllm.plugin import (
    Buffer,
    Gpu,
    GpuSampleCall,
    HostSampler,
    SampleKind,
    SamplerContext,
    SamplingRows,
    SlotParameters,
    Started,
    StartedSequence,
)
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import Int32
from tinyvllm_samplers.gpu.logprobs import MAX_LISTED, Logprobs
from tinyvllm_samplers.gpu.penalties import Penalties
from tinyvllm_samplers.gpu.sample import Sample
from tinyvllm_samplers.gpu.sample_rules import RowRules, RuleState

_ENTRIES_PER_SEQUENCE = 256
_WINDOW = 32


@dataclass(frozen=True, slots=True)
class _Detail:
    """The sampler's part of a kind.

    Attributes:
        may_cut: some row has ``top_k``, ``top_p`` or ``min_p``.
        has_rules: some row has penalties, biases or masks.
    """

    may_cut: bool
    has_rules: bool


class DefaultOnGpu:
    """The kernels and what they keep between steps.

    Args:
        context: of the engine.
        host: samples what the kernels cannot.
    """

    def __init__(self, context: SamplerContext, host: HostSampler) -> None:
        device, limits = context.workspace.device, context.workspace.limits
        assert isinstance(device, Gpu), f"no kernel is launched on {device.name}"
        self.host = host
        self._vocab_size = context.spec.vocab_size
        self._sample = Sample(device, vocab_size=self._vocab_size, max_rows=limits.max_logits_rows)
        # All scratch now, before the KV cache is sized: nothing runs out of memory when a first penalty comes.
        self._rules = _Rules(device, limits.max_seqs, self._vocab_size, limits.max_context_len)
        self._logprobs = Logprobs(device, vocab_size=self._vocab_size)

    def can_sample(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Whether the log-probabilities and the rules of a sequence fit the kernels."""
        if params.logprobs is not None and not 0 <= params.logprobs <= min(MAX_LISTED, self._vocab_size):
            return False
        if not params.has_rules:
            return True
        row = RowRules.of(params, rules)
        sizes = (row.allowed, row.end, row.bias_ids, row.words, [token for word in row.words for token in word])
        longest = max(map(len, row.words), default=1)
        return max(map(len, sizes)) <= _ENTRIES_PER_SEQUENCE and longest <= _WINDOW + 1

    def start(self, started: Started) -> None:
        """Send the rules of those sequences that have any."""
        has_rules: list[bool] = started.sampling.has_rules.tolist()
        is_served = [
            has and self.can_sample(each.params, each.rules)
            for has, each in zip(has_rules, started.sequences, strict=True)
        ]
        self._rules.start(started.slots, started.sequences, is_served)

    def kind(self, rows: SamplingRows) -> SampleKind:
        """What these rows need."""
        max_logprobs = int(rows.num_logprobs.max())
        num_listed = None
        if max_logprobs != NO_LOGPROBS:
            num_listed = 1 << max(max_logprobs - 1, 0).bit_length() if max_logprobs else 0
        has_rules = bool(rows.has_rules.any())
        may_cut = bool(((rows.top_p < 1) | (rows.top_k > 0) | (rows.min_p > 0)).any())
        is_greedy = not has_rules and num_listed is None and not rows.temperature.any()
        return SampleKind(not is_greedy, num_listed, _Detail(may_cut, has_rules))

    def sample(self, call: GpuSampleCall) -> None:
        """Queue the kernels that the kind needs."""
        detail = call.kind.detail
        assert isinstance(detail, _Detail)
        penalties, adjusted = self._rules.penalties, None
        if detail.has_rules:
            adjusted = penalties.adjusted
            penalties.apply(call.logits, call.parameters, call.slots)
        self._sample(
            call.out, call.logits, call.parameters, call.slots, call.positions, adjusted=adjusted,
            may_cut=detail.may_cut,
        )  # fmt: skip
        if detail.has_rules:
            self.record(call.out.token_ids, call.parameters, call.slots)
        if call.logprobs is not None:
            self._logprobs(call.logprobs, call.logits, call.out.token_ids, call.slots, call.parameters.num_logprobs)

    def record(self, token_ids: Buffer, parameters: SlotParameters, slots: Buffer) -> None:
        """Count the tokens for the penalties of later steps."""
        self._rules.penalties.record(token_ids, parameters, slots)


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

    def start(self, slots: Int32, sequences: Sequence[StartedSequence], has_rules: Sequence[bool]) -> None:
        if not any(has_rules) and self._in_use.isdisjoint(slots.tolist()):
            return  # as nearly always: nothing to send
        self._in_use -= set(slots.tolist())
        self._in_use |= {slot for slot, has in zip(slots.tolist(), has_rules, strict=True) if has}
        for slot, each, has in zip(slots.tolist(), sequences, has_rules, strict=True):
            if has:
                self._state.set(slot, each.params, each.rules)
            else:
                self._state.clear(slot)
        self._state.upload()
        for slot, each, has in zip(slots.tolist(), sequences, has_rules, strict=True):
            if has:
                known = self._tokens.view((len(each.token_ids),))
                self._device.memory.upload(known, each.token_ids)
                self.penalties.start(slot, known, each.num_prompt_tokens)
