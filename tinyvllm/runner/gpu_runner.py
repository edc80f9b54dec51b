"""Carries out steps on a GPU: steps are recorded as graphs, and tokens chosen there come down one step late."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvllm.batch import LayerCache, LogprobColumns
from tinyvllm.device import Gpu, Graph
from tinyvllm.errors import DeviceError, KernelError
from tinyvllm.interfaces import SampleKind
from tinyvllm.models.decoder import Decoder
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.checked_sampler import CheckedHostSampler
from tinyvllm.runner.histories import StepHistories
from tinyvllm.runner.inputs import GpuInputs, SampledRows, StepTensors
from tinyvllm.runner.prompt_graphs import PromptGraphs, StepSize
from tinyvllm.runner.runner import ModelRunner
from tinyvllm.runner.token_sampling import PendingTokens, TokenSampling
from tinyvllm.shapes import Float32, Int32
from tinyvllm.step import Done, Pending, Step, StepResult
from tinyvllm.workspace import StepLimits

MAX_GREEDY_ROWS = 1
"""Up to so many rows the head and the choice of the most likely token are one kernel; more go through the logits."""


class GpuRunner(ModelRunner):
    """Carries out steps one after the other on a GPU.

    A step in which every sequence decodes is one graph, from the inputs to the tokens. Its tokens stay on the GPU as
    inputs of the next step and come down meanwhile. What the GPU cannot sample, the host does, step by step.

    Args:
        device: where the model is.
        decoder: the model.
        caches: key and value blocks of each layer.
        limits: what the buffers are made for.
        inputs: brings a step's arrays there.
        sampler: chooses tokens, on the GPU or on the host.
        enforce_eager: launch every kernel by itself rather than as a graph.
    """

    def __init__(
        self,
        device: Gpu,
        decoder: Decoder,
        caches: Sequence[LayerCache],
        limits: StepLimits,
        inputs: GpuInputs,
        sampler: TokenSampling | CheckedHostSampler,
        *,
        enforce_eager: bool = False,
    ) -> None:
        self._tokens = sampler if isinstance(sampler, TokenSampling) else None
        host = sampler.host if isinstance(sampler, TokenSampling) else sampler
        super().__init__(device, decoder, caches, limits, inputs, host)
        self._gpu, self._gpu_inputs, self._enforce_eager = device, inputs, enforce_eager
        self._graphs: dict[tuple[int, SampleKind], Graph] = {}
        self._prompt_graphs = PromptGraphs(device, limits)
        self._sizes = decode_sizes(limits.max_seqs)
        self._last_kind: tuple[Float32 | None, SampleKind | None] = (None, None)

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Whether the GPU samples such a sequence: what the host samples must be known before the next step."""
        return self._tokens is not None and self._tokens.can_sample(params, rules)

    def recover(self) -> None:
        """Wait for whatever was queued, and take nothing for granted of what the device holds.

        Raises:
            DeviceError: the device is lost.
        """
        self._last_kind = (None, None)
        try:
            self._gpu.synchronize()
            if self._tokens is not None:
                self._tokens.recover()
        except KernelError as error:
            raise DeviceError(str(error)) from error

    def launch(self, step: Step) -> Pending:
        """Begin a step."""
        tokens = self._tokens
        if tokens is None:
            return super().launch(step)
        num_sampled = len(step.sampled)
        are_decodes = step.batch.is_decode_only and num_sampled == step.batch.num_sequences and not step.prompt_logprobs
        kind = None
        if are_decodes:
            kind = self._prepare_sampling(tokens, step)
            if kind is not None:
                self._decode(tokens, step, kind)
                return self._in_flight(tokens, kind, step, ())
        tensors = self._compute(step)
        if not are_decodes:  # only now: the GPU is at work meanwhile
            kind = self._prepare_sampling(tokens, step)
        prompts = [self._prompt_logprobs(wanted) for wanted in step.prompt_logprobs]
        if step.sampling is None:
            return Done(StepResult(None, prompts))
        if kind is None:
            sampled = self._sample_on_host(step, tensors)
            tokens.take(np.ascontiguousarray(sampled.token_ids, np.int32), tensors.sampled.slots)
            return Done(StepResult(sampled, prompts))
        self._upload_parameters(tokens, kind, num_sampled)
        self._queue_sampling(tensors.sampled, kind)
        tokens.queue_end(tensors.sampled.slots)
        return self._in_flight(tokens, kind, step, prompts)

    # ------------------------------------------------------------ before the first request

    @property
    def is_sampling_here(self) -> bool:
        """Whether tokens are chosen on the GPU; otherwise the host chooses them, and no step is a graph."""
        return self._tokens is not None

    def kind_of(self, rows: Any) -> SampleKind:
        """Which work such rows need."""
        assert self._tokens is not None, "the host samples"
        return self._tokens.kind(rows)

    def record(self, size: int, kind: SampleKind) -> None:
        """Record the graph of decode steps of up to ``size`` sequences that need ``kind``, if there is none yet.

        The steps that are run for it compute rows of padding: they read no cache, and write nothing that a request
        could read.
        """
        if (size, kind) not in self._graphs:
            self._graphs[size, kind] = self._record(size, kind)

    def rehearse_decode(self, size: int, kind: SampleKind | None) -> None:
        """Run a decode step of so many rows of padding: launchers are made and memory is allocated.

        Args:
            size: how many rows.
            kind: of sampling; None: the step ends with the logits.
        """
        self._queue_decode(self._gpu_inputs.upload_padding(size), kind)
        self._gpu.synchronize()

    def rehearse_prompts(self, size: StepSize, kind: SampleKind | None) -> None:
        """Run a step of that size, which computes prompts, on padding, as :meth:`rehearse_decode` does."""
        num_sampled = min(size.num_sequences, self._limits.max_seqs)
        self._queue_all(self._gpu_inputs.upload_prompt_padding(size, num_sampled), kind, is_decode=False)
        self._gpu.synchronize()

    # ------------------------------------------------------------ one step

    def _prepare_sampling(self, tokens: TokenSampling, step: Step) -> SampleKind | None:
        """Take the parameters of what has started; what the step's rows need, or None if the host samples them."""
        if step.started is not None:
            tokens.start(step.started)
            self._histories.start(step.started)
        if step.sampling is None:
            return None
        temperature, kind = self._last_kind
        if step.sampling.temperature is not temperature:  # otherwise these are the rows of the step before
            kind = tokens.kind_of(step.sampling, step.slots)
            self._last_kind = (step.sampling.temperature, kind)
        return kind

    def _compute(self, step: Step) -> StepTensors:
        """Everything up to the residual stream, as a graph where steps of that size come often."""
        size = StepSize.of(step.batch)
        padded = None if step.batch.is_decode_only else self._prompt_graphs.padded(size)
        tensors = self._gpu_inputs.upload(step, padded or size)

        def queue() -> None:
            self._gpu_inputs.complete(tensors, is_decode=False)
            self._decoder.forward(tensors.batch, self._caches, tensors.host_plan)

        if padded is None or self._enforce_eager:
            queue()
        else:
            self._prompt_graphs.run(padded, queue)
        return tensors

    def _decode(self, tokens: TokenSampling, step: Step, kind: SampleKind) -> None:
        """One token a sequence, in a graph of the next larger batch."""
        size = self._sizes[bisect_left(self._sizes, step.batch.num_sequences)]
        if not self._enforce_eager:
            self.record(size, kind)  # before the step's arrays are sent
        tensors = self._gpu_inputs.upload_decode(step, size)
        self._upload_parameters(tokens, kind, size)
        if self._enforce_eager:
            self._queue_decode(tensors, kind)
            tokens.queue_end(tensors.sampled.slots)
        else:
            self._graphs[size, kind].replay()

    def _record(self, size: int, kind: SampleKind) -> Graph:
        """The graph of a decode step. Launchers are made, and memory is allocated, in a run of it on padding."""
        assert self._tokens is not None, "the host samples"
        self.rehearse_decode(size, kind)
        tensors = self._gpu_inputs.upload_padding(size)
        with self._gpu.capture() as graph:
            self._queue_decode(tensors, kind)
            self._tokens.queue_end(tensors.sampled.slots)
        return graph

    def _queue_decode(self, tensors: StepTensors, kind: SampleKind | None) -> None:
        self._queue_all(tensors, kind, is_decode=True)

    def _queue_all(self, tensors: StepTensors, kind: SampleKind | None, *, is_decode: bool) -> None:
        self._gpu_inputs.complete(tensors, is_decode=is_decode)
        self._decoder.forward(tensors.batch, self._caches, tensors.host_plan)
        self._queue_sampling(tensors.sampled, kind)

    def _upload_parameters(self, tokens: TokenSampling, kind: SampleKind, num_rows: int) -> None:
        if not _is_one_kernel(kind, num_rows):  # which reads none
            tokens.upload()

    def _queue_sampling(self, sampled: SampledRows, kind: SampleKind | None) -> None:
        tokens = self._tokens
        if tokens is not None and kind is not None and _is_one_kernel(kind, sampled.num_rows):
            self._decoder.greedy(sampled.rows, tokens.token_ids.view((sampled.num_rows,)))
            return
        max_rows = self._limits.max_logits_rows
        for first in range(0, sampled.num_rows, max_rows):
            part = sampled.part(first, min(sampled.num_rows - first, max_rows), self._gpu_inputs.counting)
            logits: Any = self._decoder.logits(part.rows, part.num_rows)
            if tokens is not None and kind is not None:
                tokens.queue(kind, logits, part, first)

    def _host_logits(self, rows: Any, indices: Int32) -> Float32:
        """Logits of some rows on the host, so many at a time as their buffer holds."""
        parts = []
        for start in range(0, len(indices), self._limits.max_logits_rows):
            part = indices[start : start + self._limits.max_logits_rows]
            logits = self._decoder.logits(self._gpu_inputs.upload_rows(part), len(part))
            parts.append(self._gpu.memory.download(logits))
        return np.concatenate(parts)

    def _in_flight(
        self, tokens: TokenSampling, kind: SampleKind, step: Step, prompts: Sequence[LogprobColumns]
    ) -> Pending:
        assert step.sampling is not None
        num_rows = len(step.sampled)
        pending = tokens.pending(kind, num_rows, has_flags=not _is_one_kernel(kind, num_rows))
        # Now: once the tokens are here, a slot may be another sequence's.
        histories = self._histories.of(step.slots, step.sampling)
        return _InFlight(pending, prompts, histories)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step whose tokens are on their way; ``histories`` are those that its rows had when it was launched."""

    tokens: PendingTokens
    prompt_logprobs: Sequence[LogprobColumns]
    histories: StepHistories
    is_done: bool = False

    def wait(self) -> StepResult:
        """What the step gave."""
        sampled = self.tokens.wait()
        self.histories.append(sampled.token_ids)
        return StepResult(sampled, self.prompt_logprobs)


def decode_sizes(max_seqs: int) -> Sequence[int]:
    """Numbers of sequences that get a graph of their own: powers of two up to 16, then steps of 16, and the largest."""
    sizes = {size for size in (1, 2, 4, 8) if size <= max_seqs} | set(range(16, max_seqs + 1, 16)) | {max_seqs}
    return sorted(sizes)


def _is_one_kernel(kind: SampleKind, num_rows: int) -> bool:
    return not kind.needs_logits and num_rows <= MAX_GREEDY_ROWS
