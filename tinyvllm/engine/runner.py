"""Carries out a step on the CPU: model, logits, sampler. The device's side of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Batch, Float32, Int32, LayerCache, LogprobColumns, SampleCall, Sampled, SamplingRows
from tinyvllm.interfaces import Sampler
from tinyvllm.models.decoder import Decoder
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.sequence import SequenceTokens
from tinyvllm.shapes import ModelShape

# Prompt log-probabilities need logits of every prompt position; so many positions at a time bound the memory.
_PROMPT_LOGITS_ROWS = 64


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """A wish for the log-probabilities of some prompt tokens.

    Attributes:
        first: index in the step's tokens of the position that predicts the first of ``targets``.
        targets: ``[n]``, the tokens that follow, one after the other.
        num_logprobs: how many beside the target; ``ALL_LOGPROBS`` for the vocabulary.
    """

    first: int
    targets: Int32
    num_logprobs: int


@dataclass(frozen=True, slots=True)
class Step:
    """Everything that one step needs.

    Attributes:
        batch: the arrays.
        sampled: ``[S]``, which of the ``B`` sequences get a new token.
        sampling: the parameters of those, or None if there is none.
        tokens: token stores of those.
        prompt_logprobs: wishes.
    """

    batch: Batch
    sampled: NDArray[np.intp]
    sampling: SamplingRows | None
    tokens: Sequence[SequenceTokens]
    prompt_logprobs: Sequence[PromptLogprobs] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave: the sampler's answer and the wishes' columns, in order."""

    sampled: Sampled | None
    prompt_logprobs: Sequence[LogprobColumns]


class Runner(Protocol):
    """Whatever executes steps, one after the other."""

    def execute(self, step: Step) -> StepResult:
        """Compute a step; new tokens are appended to their stores, as a device's token buffer would take them."""
        ...


class ModelRunner:
    """Executes steps one after the other.

    Args:
        decoder: the model.
        caches: the KV cache, one entry a layer.
        sampler: chooses tokens.
    """

    def __init__(self, decoder: Decoder, caches: Sequence[LayerCache], sampler: Sampler) -> None:
        self._decoder = decoder
        self._caches = caches
        self._sampler = sampler

    def execute(self, step: Step) -> StepResult:
        """Model, logits, sampler."""
        batch = step.batch
        hidden = self._decoder.forward(batch, self._caches)
        wishes = [self._prompt_logprobs(hidden, wish) for wish in step.prompt_logprobs]
        if step.sampling is None:
            return StepResult(None, wishes)
        is_all = len(step.sampled) == batch.num_tokens
        rows = hidden if is_all else hidden[batch.last_token_index[step.sampled]]
        sampled = self._sampler.sample(SampleCall(self._decoder.logits(rows), step.sampling, step.tokens))
        for tokens, token_id in zip(step.tokens, sampled.token_ids.tolist(), strict=True):
            tokens.append(token_id)
        return StepResult(sampled, wishes)

    def _prompt_logprobs(self, hidden: Float32, wish: PromptLogprobs) -> LogprobColumns:
        parts = []
        for start in range(0, len(wish.targets), _PROMPT_LOGITS_ROWS):
            targets = wish.targets[start : start + _PROMPT_LOGITS_ROWS]
            first = wish.first + start
            logits = self._decoder.logits(hidden[first : first + len(targets)])
            parts.append(logprob_columns(logits, targets, wish.num_logprobs))
        return LogprobColumns(
            np.concatenate([p.token_ids for p in parts]),
            np.concatenate([p.logprobs for p in parts]),
            np.concatenate([p.rank for p in parts]),
        )


def allocate_caches(shape: ModelShape, num_blocks: int, block_size: int) -> list[LayerCache]:
    """A KV cache of zeros for every layer. The system hands out the memory when a block is first written."""
    size = (num_blocks, shape.num_kv_heads, block_size, shape.head_dim)
    return [LayerCache(np.zeros(size, np.float32), np.zeros(size, np.float32)) for _ in range(shape.num_layers)]
