"""Carries out steps on a device: arrays up, one graph for a decode step, tokens down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyvllm.batch import NO_LOGPROBS, Batch, Int32, LogprobColumns, SampleCall, Sampled
from tinyvllm.devices.interface import Buffer, Device, Graph
from tinyvllm.engine.runner import PromptLogprobs, Step, StepResult
from tinyvllm.interfaces import Sampler
from tinyvllm.kernels.launch import BFLOAT16, INT32
from tinyvllm.models.device_decoder import DeviceBatch, DeviceDecoder, DeviceLimits
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.shapes import ModelShape


class DeviceRunner:
    """Executes steps one after the other on a device.

    A step that decodes only, greedily, is one graph from embedding to token. Otherwise the logits come down and the
    sampler chooses on the host.

    Args:
        device: where the model is.
        decoder: the model.
        sampler: for rows that are not plainly greedy.
        caches: key and value blocks of each layer.
        limits: what the buffers are made for.
        enforce_eager: launch every kernel by itself rather than as a graph.
    """

    def __init__(
        self,
        device: Device,
        decoder: DeviceDecoder,
        sampler: Sampler,
        caches: list[tuple[Buffer, Buffer]],
        limits: DeviceLimits,
        *,
        enforce_eager: bool = False,
    ) -> None:
        self._device, self._decoder, self._sampler = device, decoder, sampler
        self._caches, self._limits, self._enforce_eager = caches, limits, enforce_eager
        self._max_blocks = -(-limits.max_context_len // limits.block_size)
        self._inputs = _Inputs(device, limits, self._max_blocks)
        self._greedy_ids = device.memory.alloc((limits.max_seqs,), INT32)
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self._buckets = batch_buckets(limits.max_seqs)

    def execute(self, step: Step) -> StepResult:
        """Compute a step; the new tokens are appended to their stores."""
        batch = step.batch
        is_greedy = step.sampling is not None and bool(
            not step.sampling.temperature.any()
            and not step.sampling.has_rules.any()
            and (step.sampling.num_logprobs == NO_LOGPROBS).all()
        )
        if batch.is_decode_only and len(step.sampled) == batch.num_sequences and not step.prompt_logprobs:
            self._decode(batch, is_greedy=is_greedy)
        else:
            self._decoder.forward(self._inputs.upload(batch, batch.num_tokens, batch.num_sequences), self._caches)
            if is_greedy:
                rows = self._inputs.upload_rows(batch.last_token_index[step.sampled])
                self._decoder.greedy(rows, self._greedy_ids.view((len(step.sampled),)))
        wishes = [self._prompt_logprobs(wish) for wish in step.prompt_logprobs]
        if step.sampling is None:
            return StepResult(None, wishes)
        if is_greedy:
            ids = self._device.memory.download(self._greedy_ids.view((len(step.sampled),)))
            sampled = Sampled(np.maximum(ids, 0), is_corrupt=ids < 0 if (ids < 0).any() else None)
        else:
            logits = self._logits(None if batch.is_decode_only else batch.last_token_index[step.sampled], step)
            sampled = self._sampler.sample(SampleCall(logits, step.sampling, step.tokens))
        for tokens, token_id in zip(step.tokens, sampled.token_ids.tolist(), strict=True):
            tokens.append(token_id)
        return StepResult(sampled, wishes)

    def _decode(self, batch: Batch, *, is_greedy: bool) -> None:
        """One token a sequence, in a graph of the next larger batch."""
        bucket = next(size for size in self._buckets if size >= batch.num_sequences)
        inputs = self._inputs.upload(batch, bucket, bucket)
        key = (bucket, is_greedy)
        if self._enforce_eager:
            self._queue_decode(inputs, is_greedy=is_greedy)
            return
        if key not in self._graphs:
            # Once outside of the recording: launchers are made, and their scratch memory allocated, at first use.
            self._queue_decode(inputs, is_greedy=is_greedy)
            self._device.synchronize()
            with self._device.capture() as graph:
                self._queue_decode(inputs, is_greedy=is_greedy)
            self._graphs[key] = graph
        self._graphs[key].replay()

    def _queue_decode(self, inputs: DeviceBatch, *, is_greedy: bool) -> None:
        self._decoder.forward(inputs, self._caches)
        if is_greedy:
            self._decoder.greedy(None, self._greedy_ids.view((inputs.num_tokens,)))

    def _logits(self, indices: Int32 | None, step: Step) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Logits of the sampled rows on the host, so many rows at a time as their buffer holds."""
        if indices is None:
            indices = step.sampled.astype(np.int32)
        parts = []
        for start in range(0, len(indices), self._limits.max_logits_rows):
            part = indices[start : start + self._limits.max_logits_rows]
            rows = self._inputs.upload_rows(part)
            parts.append(self._device.memory.download(self._decoder.logits(rows, len(part))))
        return np.concatenate(parts)

    def _prompt_logprobs(self, wish: PromptLogprobs) -> LogprobColumns:
        parts = []
        for start in range(0, len(wish.targets), self._limits.max_logits_rows):
            targets = wish.targets[start : start + self._limits.max_logits_rows]
            first = wish.first + start
            rows = self._inputs.upload_rows(np.arange(first, first + len(targets), dtype=np.int32))
            logits = self._device.memory.download(self._decoder.logits(rows, len(targets)))
            parts.append(logprob_columns(logits, targets, wish.num_logprobs))
        return LogprobColumns(
            np.concatenate([p.token_ids for p in parts]),
            np.concatenate([p.logprobs for p in parts]),
            np.concatenate([p.rank for p in parts]),
        )


def batch_buckets(max_seqs: int) -> Sequence[int]:
    """Batch sizes that get a graph of their own: powers of two up to 16, then steps of 16, and the largest."""
    sizes = {size for size in (1, 2, 4, 8) if size <= max_seqs} | set(range(16, max_seqs + 1, 16)) | {max_seqs}
    return sorted(sizes)


def allocate_device_caches(
    device: Device, shape: ModelShape, num_blocks: int, block_size: int
) -> list[tuple[Buffer, Buffer]]:
    """Key and value blocks of every layer, ``[num_blocks, K, block_size, D]`` bfloat16 each."""
    size = (num_blocks, shape.num_kv_heads, block_size, shape.head_dim)
    return [(device.memory.alloc(size, BFLOAT16), device.memory.alloc(size, BFLOAT16)) for _ in range(shape.num_layers)]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where each array of a step begins in the one buffer that goes up, in elements."""

    token_ids: int
    positions: int
    slot_mapping: int
    context_lens: int
    cu_seqlens_q: int
    total: int


class _Inputs:
    """Buffers that a step's arrays are copied to; always the same, so that graphs need no new arguments."""

    def __init__(self, device: Device, limits: DeviceLimits, max_blocks: int) -> None:
        self._device, self._max_blocks = device, max_blocks
        t, b = limits.max_tokens, limits.max_seqs
        self._at = _Columns(0, t, 2 * t, 3 * t, 3 * t + b, 3 * t + 2 * b + 1)
        self._host = np.zeros(self._at.total, np.int32)
        self._buffer = device.memory.alloc((self._at.total,), INT32)
        self._tables = device.memory.alloc((b, max_blocks), INT32)
        self._host_tables = np.full((b, max_blocks), -1, np.int32)  # no table is so: the first is uploaded
        self._rows = device.memory.alloc((max(limits.max_logits_rows, b),), INT32)

    def upload(self, batch: Batch, num_tokens: int, num_sequences: int) -> DeviceBatch:
        """The batch on the device, padded to so many tokens and sequences."""
        at, host = self._at, self._host
        t, b = batch.num_tokens, batch.num_sequences
        for start, values, size, padding in (
            (at.token_ids, batch.token_ids, num_tokens, 0),
            (at.positions, batch.positions, num_tokens, 0),
            (at.slot_mapping, batch.slot_mapping, num_tokens, -1),
            (at.context_lens, batch.context_lens, num_sequences, 0),
        ):
            host[start : start + len(values)] = values
            host[start + len(values) : start + size] = padding
        host[at.cu_seqlens_q : at.cu_seqlens_q + b + 1] = batch.cu_seqlens_q
        self._device.memory.upload(self._buffer, host)
        width = batch.block_tables.shape[1]
        if not np.array_equal(self._host_tables[:b, :width], batch.block_tables):
            self._host_tables[:b, :width] = batch.block_tables
            rows = self._host_tables[:b]
            self._device.memory.upload(self._tables.view(rows.shape), rows)
        is_decode = t == b
        return DeviceBatch(
            token_ids=self._part(at.token_ids, num_tokens),
            positions=self._part(at.positions, num_tokens),
            slot_mapping=self._part(at.slot_mapping, num_tokens),
            context_lens=self._part(at.context_lens, num_sequences),
            block_tables=self._tables.view((num_sequences, self._max_blocks)),
            cu_seqlens_q=None if is_decode else self._part(at.cu_seqlens_q, num_sequences + 1),
        )

    def upload_rows(self, indices: Int32) -> Buffer:
        """Indices of rows, on the device."""
        buffer = self._rows.view((len(indices),))
        self._device.memory.upload(buffer, indices.astype(np.int32, copy=False))
        return buffer

    def _part(self, start: int, size: int) -> Buffer:
        return self._buffer.view((size,), offset_bytes=start * INT32.itemsize)
