"""Carries out a step on the CPU: model, logits, sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyvllm.batch import Float32, LayerCache, LogprobColumns, SampleCall
from tinyvllm.models.decoder import Decoder
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.checked_sampler import CheckedSampler
from tinyvllm.shapes import ModelShape
from tinyvllm.step import Done, Pending, PromptLogprobs, Step, StepResult

# Prompt log-probabilities need logits of every prompt position; so many positions at a time bound the memory.
_PROMPT_LOGITS_ROWS = 64


class ModelRunner:
    """Executes steps one after the other.

    Args:
        decoder: the model.
        caches: the KV cache, one entry a layer.
        sampler: chooses tokens; its answers are checked before they get here.
    """

    def __init__(self, decoder: Decoder, caches: Sequence[LayerCache], sampler: CheckedSampler) -> None:
        self._decoder = decoder
        self._caches = caches
        self._sampler = sampler

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Always: a step is over when it was launched."""
        return True

    def recover(self) -> None:
        """Nothing to do: a step leaves nothing behind but K and V, which the next one writes before it reads them."""

    def launch(self, step: Step) -> Pending:
        """Model, logits, sampler."""
        batch = step.batch
        hidden = self._decoder.forward(batch, self._caches)
        wishes = [self._prompt_logprobs(hidden, wish) for wish in step.prompt_logprobs]
        if step.sampling is None:
            return Done(StepResult(None, wishes))
        is_all = len(step.sampled) == batch.num_tokens
        rows = hidden if is_all else hidden[batch.last_token_index[step.sampled]]
        sampled = self._sampler.sample(SampleCall(self._decoder.logits(rows), step.sampling, step.tokens))
        return Done(StepResult(sampled, wishes))

    def _prompt_logprobs(self, hidden: Float32, wish: PromptLogprobs) -> LogprobColumns:
        parts = []
        for start in range(0, len(wish.targets), _PROMPT_LOGITS_ROWS):
            targets = wish.targets[start : start + _PROMPT_LOGITS_ROWS]
            first = wish.first + start
            logits = self._decoder.logits(hidden[first : first + len(targets)])
            parts.append(logprob_columns(logits, targets, wish.num_logprobs))
        return joined(parts)


def joined(parts: Sequence[LogprobColumns]) -> LogprobColumns:
    """The rows of all parts, which are equally wide, one after the other."""
    return LogprobColumns(
        np.concatenate([p.token_ids for p in parts]),
        np.concatenate([p.logprobs for p in parts]),
        np.concatenate([p.rank for p in parts]),
    )


def allocate_caches(shape: ModelShape, num_blocks: int, block_size: int) -> list[LayerCache]:
    """A KV cache of zeros for every layer. The system hands out the memory when a block is first written."""
    size = (num_blocks, shape.num_kv_heads, block_size, shape.head_dim)
    return [LayerCache(np.zeros(size, np.float32), np.zeros(size, np.float32)) for _ in range(shape.num_layers)]
