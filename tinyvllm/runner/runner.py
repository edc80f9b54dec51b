"""Carries out steps on any device, one after the other: arrays up, the model, the tokens chosen on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from tinyvllm.batch import LayerCache, LogprobColumns, SampleCall, Sampled
from tinyvllm.device import Device
from tinyvllm.models.decoder import Decoder
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.checked_sampler import CheckedHostSampler
from tinyvllm.runner.histories import Histories
from tinyvllm.runner.inputs import StepTensors
from tinyvllm.shapes import Float32, Int32
from tinyvllm.step import Done, Pending, PromptLogprobs, Step, StepResult
from tinyvllm.workspace import StepLimits


class Inputs(Protocol):
    """Brings a step's arrays to where the model is."""

    def upload(self, step: Step) -> StepTensors:
        """The arrays of any step, without padding."""
        ...

    def upload_rows(self, indices: Int32) -> Any:
        """Indices of rows, ``[n]`` int32; until the next call."""
        ...


class ModelRunner:
    """The plain path: what every device can do, and all that the CPU does.

    Args:
        device: where the model is.
        decoder: the model.
        caches: key and value blocks of each layer.
        limits: of a step.
        inputs: brings a step's arrays there.
        sampler: chooses tokens on the host; None: nothing is ever sampled there.
    """

    def __init__(
        self,
        device: Device,
        decoder: Decoder,
        caches: Sequence[LayerCache],
        limits: StepLimits,
        inputs: Inputs,
        sampler: CheckedHostSampler | None,
    ) -> None:
        self._device, self._decoder, self._caches, self._limits = device, decoder, caches, limits
        self._inputs, self._host_sampler = inputs, sampler
        self._histories = Histories()

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Always: a step is over when it was launched, and its tokens are known."""
        return True

    def recover(self) -> None:
        """Nothing to do.

        A step leaves K and V behind, which the next one writes before it reads them, and tokens in the histories of its
        own sequences, which have ended.
        """

    def launch(self, step: Step) -> Pending:
        """Carry out a step."""
        if step.started is not None:
            self._histories.start(step.started)
        tensors = self._compute(step)
        prompts = [self._prompt_logprobs(wanted) for wanted in step.prompt_logprobs]
        if step.sampling is None:
            return Done(StepResult(None, prompts))
        return Done(StepResult(self._sample_on_host(step, tensors), prompts))

    def _compute(self, step: Step) -> StepTensors:
        """Everything up to the residual stream of the last layer."""
        tensors = self._inputs.upload(step)
        self._decoder.forward(tensors.batch, self._caches, tensors.host_plan)
        return tensors

    def _sample_on_host(self, step: Step, tensors: StepTensors) -> Sampled:
        """The step's tokens, by the host's sampler."""
        assert step.sampling is not None
        assert self._host_sampler is not None, "the runner has no sampler of the host"
        logits = self._host_logits(tensors.sampled.rows, step.sampled_rows)
        histories = self._histories.of(step.slots, step.sampling)
        sampled = self._host_sampler.sample(SampleCall(logits, step.sampling, histories.tokens))
        histories.append(sampled.token_ids)
        return sampled

    def _host_logits(self, rows: Any, indices: Int32) -> Float32:
        """Logits of some rows, on the host; valid until the next call.

        Args:
            rows: where the model is, as in :class:`~tinyvllm.runner.inputs.SampledRows`.
            indices: the same rows, on the host.
        """
        logits: Any = self._decoder.logits(rows, len(indices))
        return logits  # type: ignore[no-any-return]

    def _prompt_logprobs(self, wanted: PromptLogprobs) -> LogprobColumns:
        parts = []
        for start in range(0, len(wanted.targets), self._limits.max_logits_rows):
            targets = wanted.targets[start : start + self._limits.max_logits_rows]
            first = wanted.first + start
            indices = np.arange(first, first + len(targets), dtype=np.int32)
            logits = self._host_logits(self._inputs.upload_rows(indices), indices)
            parts.append(logprob_columns(logits, targets, wanted.num_logprobs))
        return LogprobColumns(
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.logprobs for part in parts]),
            np.concatenate([part.rank for part in parts]),
        )
