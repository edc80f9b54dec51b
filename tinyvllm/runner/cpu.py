"""Carries out a step on the CPU: model, logits, sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyvllm.batch import BatchTensors, LayerCache, LogprobColumns, SampleCall
from tinyvllm.models.decoder import Decoder
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.checked_sampler import CheckedSampler
from tinyvllm.step import Done, Pending, PromptLogprobs, Step, StepResult
from tinyvllm.workspace import StepLimits


class ModelRunner:
    """Executes steps one after the other.

    Args:
        decoder: the model.
        caches: the KV cache, one entry a layer.
        sampler: chooses tokens; its answers are checked before they get here.
        limits: of a step.
    """

    def __init__(
        self, decoder: Decoder, caches: Sequence[LayerCache], sampler: CheckedSampler, limits: StepLimits
    ) -> None:
        self._decoder = decoder
        self._caches = caches
        self._sampler = sampler
        self._max_logits_rows = limits.max_logits_rows

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Always: a step is over when it was launched."""
        return True

    def recover(self) -> None:
        """Nothing to do: a step leaves nothing behind but K and V, which the next one writes before it reads them."""

    def launch(self, step: Step) -> Pending:
        """Model, logits, sampler."""
        batch = step.batch.read_only()  # plugins see it
        decoder = self._decoder
        tensors = BatchTensors(
            batch.token_ids, batch.positions, batch.slot_mapping, batch.context_lens, batch.block_tables,
            batch.cu_seqlens_q,
        )  # fmt: skip
        decoder.forward(tensors, self._caches, decoder.host_plan(batch))
        prompts = [self._prompt_logprobs(wanted) for wanted in step.prompt_logprobs]
        if step.sampling is None:
            return Done(StepResult(None, prompts))
        num_rows = len(step.sampled)
        rows = None if num_rows == batch.num_tokens else batch.last_token_index[step.sampled]
        logits: Any = decoder.logits(rows, num_rows)
        return Done(StepResult(self._sampler.sample(SampleCall(logits, step.sampling, step.tokens)), prompts))

    def _prompt_logprobs(self, wanted: PromptLogprobs) -> LogprobColumns:
        parts = []
        for start in range(0, len(wanted.targets), self._max_logits_rows):
            targets = wanted.targets[start : start + self._max_logits_rows]
            first = wanted.first + start
            rows = np.arange(first, first + len(targets), dtype=np.int32)
            logits: Any = self._decoder.logits(rows, len(rows))
            parts.append(logprob_columns(logits, targets, wanted.num_logprobs))
        return joined(parts)


def joined(parts: Sequence[LogprobColumns]) -> LogprobColumns:
    """The rows of all parts, which are equally wide, one after the other."""
    return LogprobColumns(
        np.concatenate([p.token_ids for p in parts]),
        np.concatenate([p.logprobs for p in parts]),
        np.concatenate([p.rank for p in parts]),
    )
