"""Carries out steps on a device: arrays up, one graph for a decode step, tokens down one step late."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvllm.batch import Float32, Int32, LayerCache, LogprobColumns, SampleCall, Sampled
from tinyvllm.device import Gpu, Graph
from tinyvllm.errors import DeviceError, KernelError
from tinyvllm.models.decoder import Decoder
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.checked_sampler import CheckedSampler
from tinyvllm.runner.cpu import joined
from tinyvllm.runner.inputs import DeviceInputs, SampledRows, StepBuffers
from tinyvllm.runner.prompt_graphs import PromptGraphs, StepSize
from tinyvllm.runner.sampling import DeviceSampling, PendingTokens, SamplingMode
from tinyvllm.step import Done, Pending, PromptLogprobs, Step, StepResult
from tinyvllm.workspace import StepLimits

MOST_GREEDY_ROWS = 1
"""Up to so many rows the head and the choice of the most likely token are one kernel; more go through the logits."""


class DeviceRunner:
    """Carries out steps one after the other on a device.

    A step in which every sequence decodes is one graph, from the inputs to the tokens. Its tokens stay on the device
    as inputs of the next step and come down meanwhile. What the device cannot sample, the host does, step by step.

    Args:
        device: where the model is.
        decoder: the model.
        caches: key and value blocks of each layer.
        limits: what the buffers are made for.
        sampling: the kernels that choose tokens.
        sampler: for what the kernels do not do.
        enforce_eager: launch every kernel by itself rather than as a graph.
    """

    def __init__(
        self,
        device: Gpu,
        decoder: Decoder,
        caches: Sequence[LayerCache],
        limits: StepLimits,
        sampling: DeviceSampling,
        sampler: CheckedSampler,
        *,
        enforce_eager: bool = False,
    ) -> None:
        self._device, self._decoder, self._caches, self._limits = device, decoder, caches, limits
        self._sampling, self._sampler, self._enforce_eager = sampling, sampler, enforce_eager
        self._inputs = DeviceInputs(device, limits)
        self._graphs: dict[tuple[int, SamplingMode], Graph] = {}
        self._prompt_graphs = PromptGraphs(device, limits)
        self._sizes = decode_sizes(limits.max_seqs)
        self._last_mode: tuple[Float32 | None, SamplingMode | None] = (None, None)

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """Whether the device samples such a sequence: what the host samples must be known before the next step."""
        return self._sampling.can_sample(params, rules)

    def recover(self) -> None:
        """Wait for whatever was queued, and take nothing for granted of what the device holds.

        Raises:
            DeviceError: the device is lost.
        """
        self._last_mode = (None, None)
        try:
            self._device.synchronize()
            self._sampling.recover()
        except KernelError as error:
            raise DeviceError(str(error)) from error

    def launch(self, step: Step) -> Pending:
        """Begin a step."""
        batch, num_sampled = step.batch, len(step.sampled)
        are_decodes = batch.is_decode_only and num_sampled == batch.num_sequences and not step.prompt_logprobs
        mode = None
        if are_decodes:
            mode = self._prepare_sampling(step)
            if mode is not None:
                self._decode(step, mode)
                return self._in_flight(mode, num_sampled, ())
        buffers = self._compute(step)
        if not are_decodes:  # only now: the device is at work meanwhile
            mode = self._prepare_sampling(step)
        prompts = [self._prompt_logprobs(wanted) for wanted in step.prompt_logprobs]
        if step.sampling is None:
            return Done(StepResult(None, prompts))
        if mode is None:
            return Done(StepResult(self._sample_on_host(step, buffers), prompts))
        self._upload_parameters(mode, num_sampled)
        self._queue_sampling(buffers.sampled, mode)
        self._sampling.queue_end(buffers.sampled.slots)
        return self._in_flight(mode, num_sampled, prompts)

    def record(self, size: int, mode: SamplingMode) -> None:
        """Record the graph of decode steps of up to ``size`` sequences that need ``mode``, if there is none yet.

        The steps that are run for it compute rows of padding: they read no cache, and write nothing that a request
        could read.
        """
        if (size, mode) not in self._graphs:
            self._graphs[size, mode] = self._record(size, mode)

    @property
    def is_sampling_here(self) -> bool:
        """Whether tokens are chosen on the device; otherwise the host chooses them, and no step is a graph."""
        return self._sampling.is_chosen

    def rehearse_decode(self, size: int, mode: SamplingMode | None) -> None:
        """Run a decode step of so many rows of padding: launchers are made and memory is allocated.

        Args:
            size: how many rows.
            mode: kind of sampling; None: the step ends with the logits.
        """
        self._queue_decode(self._inputs.upload_padding(size), mode)
        self._device.synchronize()

    def rehearse_prompts(self, size: StepSize, mode: SamplingMode | None) -> None:
        """Run a step of that size, which computes prompts, on padding, as :meth:`rehearse_decode` does."""
        num_sampled = min(size.num_sequences, self._limits.max_seqs)
        buffers = self._inputs.upload_prompt_padding(size, num_sampled)
        self._inputs.complete(buffers, self._sampling.newest, is_decode=False)
        self._decoder.forward(buffers.batch, self._caches)
        self._queue_sampling(buffers.sampled, mode)
        self._device.synchronize()

    def _prepare_sampling(self, step: Step) -> SamplingMode | None:
        """Take the parameters of what has started; what the step's rows need, or None if the host samples them."""
        if step.started is not None:
            self._sampling.start(step.started)
        return self._mode_of(step)

    def _mode_of(self, step: Step) -> SamplingMode | None:
        """What the step's rows need of the device; None: the host samples them."""
        if step.sampling is None:
            return None
        temperature, mode = self._last_mode
        if step.sampling.temperature is not temperature:  # otherwise these are the rows of the step before
            can_sample = self._sampling.can_sample_all(step.slots)
            mode = SamplingMode.of(step.sampling) if can_sample else None
            self._last_mode = (step.sampling.temperature, mode)
        return mode

    def _compute(self, step: Step) -> StepBuffers:
        """Everything up to the logits of a step that is more than decodes."""
        size = StepSize.of(step.batch)
        padded = None if step.batch.is_decode_only else self._prompt_graphs.padded(size)
        buffers = self._inputs.upload(step, padded or size)

        def queue() -> None:
            self._inputs.complete(buffers, self._sampling.newest, is_decode=False)
            self._decoder.forward(buffers.batch, self._caches)

        if padded is None or self._enforce_eager:
            queue()
        else:
            self._prompt_graphs.run(padded, queue)
        return buffers

    # ------------------------------------------------------------ a step of the device's own

    def _decode(self, step: Step, mode: SamplingMode) -> None:
        """One token a sequence, in a graph of the next larger batch."""
        size = self._sizes[bisect_left(self._sizes, step.batch.num_sequences)]
        if not self._enforce_eager:
            self.record(size, mode)  # before the step's arrays are sent
        buffers = self._inputs.upload_decode(step, size)
        self._upload_parameters(mode, size)
        if self._enforce_eager:
            self._queue_decode(buffers, mode)
            self._sampling.queue_end(buffers.sampled.slots)
        else:
            self._graphs[size, mode].replay()

    def _record(self, size: int, mode: SamplingMode) -> Graph:
        """The graph of a decode step. Launchers are made, and memory is allocated, in a run of it on padding."""
        self.rehearse_decode(size, mode)
        buffers = self._inputs.upload_padding(size)
        with self._device.capture() as graph:
            self._queue_decode(buffers, mode)
            self._sampling.queue_end(buffers.sampled.slots)
        return graph

    def _queue_decode(self, buffers: StepBuffers, mode: SamplingMode | None) -> None:
        self._inputs.complete(buffers, self._sampling.newest, is_decode=True)
        self._decoder.forward(buffers.batch, self._caches)
        self._queue_sampling(buffers.sampled, mode)

    def _upload_parameters(self, mode: SamplingMode, num_rows: int) -> None:
        if not self._is_one_kernel(mode, num_rows):  # which reads none
            self._sampling.upload()

    def _queue_sampling(self, sampled: SampledRows, mode: SamplingMode | None) -> None:
        if mode is not None and self._is_one_kernel(mode, sampled.num_rows):
            self._decoder.greedy(sampled.rows, self._sampling.token_ids.view((sampled.num_rows,)))
            return
        most = self._limits.max_logits_rows
        for first in range(0, sampled.num_rows, most):
            part = sampled.part(first, min(sampled.num_rows - first, most), self._inputs.counting)
            logits: Any = self._decoder.logits(part.rows, part.num_rows)
            if mode is not None:
                self._sampling.queue(mode, logits, part, first)

    def _is_one_kernel(self, mode: SamplingMode, num_rows: int) -> bool:
        return mode.is_greedy and num_rows <= MOST_GREEDY_ROWS

    def _in_flight(self, mode: SamplingMode, num_rows: int, wishes: Sequence[LogprobColumns]) -> Pending:
        has_flags = not self._is_one_kernel(mode, num_rows)
        return _InFlight(self._sampling.pending(mode, num_rows, has_flags=has_flags), wishes)

    # ------------------------------------------------------------ what the host does

    def _sample_on_host(self, step: Step, buffers: StepBuffers) -> Sampled:
        """The step's tokens by the sampler plugin; the device takes them as if they were its own."""
        assert step.sampling is not None
        logits = self._rows_of_logits(step.batch.last_token_index[step.sampled])
        sampled = self._sampler.sample(SampleCall(logits, step.sampling, step.tokens))
        self._sampling.take(np.ascontiguousarray(sampled.token_ids, np.int32), buffers.sampled.slots)
        return sampled

    def _rows_of_logits(self, indices: Int32) -> Float32:
        """Logits of some rows on the host, so many at a time as their buffer holds."""
        parts = []
        for start in range(0, len(indices), self._limits.max_logits_rows):
            part = indices[start : start + self._limits.max_logits_rows]
            rows = self._inputs.upload_rows(part)
            parts.append(self._device.memory.download(self._decoder.logits(rows, len(part))))
        return np.concatenate(parts)

    def _prompt_logprobs(self, wanted: PromptLogprobs) -> LogprobColumns:
        parts = []
        for start in range(0, len(wanted.targets), self._limits.max_logits_rows):
            targets = wanted.targets[start : start + self._limits.max_logits_rows]
            first = wanted.first + start
            logits = self._rows_of_logits(np.arange(first, first + len(targets), dtype=np.int32))
            parts.append(logprob_columns(logits, targets, wanted.num_logprobs))
        return joined(parts)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step whose tokens are on their way."""

    tokens: PendingTokens
    prompt_logprobs: Sequence[LogprobColumns]
    is_done: bool = False

    def wait(self) -> StepResult:
        """What the step gave."""
        return StepResult(self.tokens.wait(), self.prompt_logprobs)


def decode_sizes(max_seqs: int) -> Sequence[int]:
    """Numbers of sequences that get a graph of their own: powers of two up to 16, then steps of 16, and the largest."""
    sizes = {size for size in (1, 2, 4, 8) if size <= max_seqs} | set(range(16, max_seqs + 1, 16)) | {max_seqs}
    return sorted(sizes)
