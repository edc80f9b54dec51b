"""What a machine can do, and how long a step must take at least.

A decode step reads every weight once and every key and value of the context once; a prefill multiplies. Whichever of
bytes over bandwidth and operations over matrix rate is larger is the floor (Williams et al. 2009).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np

from tinyvllm.errors import ConfigError
from tinyvllm.shapes import ModelShape

_STREAM_BYTES = 1 << 29
_MATRIX_SIZE = 2048
_REPEATS = 7
_COPY_BYTES = 1 << 30
_DEVICE_MATRIX_SIZE = 8192
# By a part of the name that the driver gives: NVIDIA's data sheets of the H200 and of the H100 SXM.
_DATASHEET_BANDWIDTH = {"H200": 4.8e12, "H100 80GB HBM3": 3.35e12}


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured ceilings.

    Attributes:
        bandwidth: bytes a second. On the CPU of reading a matrix larger than the caches once, as a decode step does;
            on a card of a copy, bytes read and bytes written counted.
        matrix_rate: floating-point operations a second of a large matrix product.
        name: of the card, or ``cpu``.
    """

    bandwidth: float
    matrix_rate: float
    name: str = "cpu"

    def datasheet_fraction(self, num_bytes: float, seconds: float) -> float | None:
        """Of the bandwidth that the card's data sheet promises, what moving so many bytes in that time used.

        None: it is not a card whose sheet was read. On an H200 a copy itself reaches 0.89 of it.
        """
        nominal = next((rate for card, rate in _DATASHEET_BANDWIDTH.items() if card in self.name), None)
        return None if nominal is None else num_bytes / seconds / nominal


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs a step.

    Attributes:
        weight_bytes: ``W``, read once a step.
        flops_per_token: ``2 P``, of all matrix products but attention's.
        kv_bytes_per_token: keys and values of one position, over all layers.
        attention_flops_per_pair: of one query and one key, over all layers and heads.
        layer_flops_per_token: ``flops_per_token`` without the head, which a prefill needs for one position only.
    """

    weight_bytes: float
    flops_per_token: float
    kv_bytes_per_token: float
    attention_flops_per_pair: float
    layer_flops_per_token: float


@dataclass(frozen=True, slots=True)
class ScheduleFloor:
    """The least that many requests cost together.

    Attributes:
        seconds: for everything.
        decode_bytes: that the decode steps must read.
    """

    seconds: float
    decode_bytes: float


def measure_cpu() -> Machine:
    """The CPU's ceilings, with the threads that the BLAS uses; medians."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1 << 12, _STREAM_BYTES >> 14), dtype=np.float32)
    row = rng.standard_normal((1, weight.shape[0]), dtype=np.float32)
    square = rng.standard_normal((_MATRIX_SIZE, _MATRIX_SIZE), dtype=np.float32)
    stream_s = _median_s(lambda: row @ weight)
    matrix_s = _median_s(lambda: square @ square)
    return Machine(weight.nbytes / stream_s, 2.0 * _MATRIX_SIZE**3 / matrix_s)


def measure(device: Any) -> Machine:
    """The ceilings of the device that an engine runs on.

    Raises:
        ConfigError: the device has no clock of its own (the emulator), so there is nothing to compare with.
    """
    if device.name == "cpu":
        return measure_cpu()
    if device.name != "cuda":
        raise ConfigError("device: emulator is for checking kernels, not for timing them; use cpu or cuda")
    half = device.memory.alloc((_COPY_BYTES,), np.uint8)
    other = device.memory.alloc((_COPY_BYTES,), np.uint8)
    copy_us = device.time_us(lambda: device.memory.copy(other, half), 20, in_graph=False)
    size = (_DEVICE_MATRIX_SIZE, _DEVICE_MATRIX_SIZE)
    rng = np.random.default_rng(0)
    operands = []
    for _ in range(2):  # random, never zeros: those are faster than any real data
        buffer = device.memory.alloc(size, ml_dtypes.bfloat16)
        device.memory.upload(buffer, rng.standard_normal(size, dtype=np.float32).astype(ml_dtypes.bfloat16))
        operands.append(buffer)
    out = device.memory.alloc(size, ml_dtypes.bfloat16)
    device.tune_gemm(out, *operands)
    matrix_us = device.time_us(lambda: device.gemm(out, *operands), 20)
    return Machine(2e6 * _COPY_BYTES / copy_us, 2e6 * _DEVICE_MATRIX_SIZE**3 / matrix_us, device.properties.name)


def model_cost(shape: ModelShape, *, element_bytes: int) -> ModelCost:
    """The cost of a model from its sizes; norms and biases are too small to count."""
    s = shape
    query, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
    layer = s.hidden_size * (2 * query + 2 * kv + 3 * s.intermediate_size)
    head = s.vocab_size * s.hidden_size
    return ModelCost(
        weight_bytes=float(element_bytes * (s.num_layers * layer + head)),
        flops_per_token=2.0 * (s.num_layers * layer + head),
        kv_bytes_per_token=2.0 * s.num_layers * kv * element_bytes,
        attention_flops_per_pair=4.0 * s.num_layers * query,
        layer_flops_per_token=2.0 * s.num_layers * layer,
    )


def decode_floor_s(cost: ModelCost, machine: Machine, *, batch: int, num_visible: float) -> float:
    """Least seconds of a step that computes one token of each sequence.

    Args:
        cost: of the model.
        machine: what it runs on.
        batch: sequences.
        num_visible: positions that all sequences together look at, ``sum(L + 1)``: this step's tokens included.
    """
    weights = max(cost.weight_bytes / machine.bandwidth, cost.flops_per_token * batch / machine.matrix_rate)
    bytes_s = cost.kv_bytes_per_token * num_visible / machine.bandwidth
    return weights + max(bytes_s, cost.attention_flops_per_pair * num_visible / machine.matrix_rate)


def decode_bytes(cost: ModelCost, num_visible: float) -> float:
    """Bytes that such a step must read."""
    return cost.weight_bytes + cost.kv_bytes_per_token * num_visible


def prefill_floor_s(cost: ModelCost, machine: Machine, num_tokens: int) -> float:
    """Least seconds to compute a prompt and the logits after it; causal attention is half of all pairs."""
    head_flops = cost.flops_per_token - cost.layer_flops_per_token
    attention = cost.attention_flops_per_pair * num_tokens**2 / 2
    flops = cost.layer_flops_per_token * num_tokens + attention + head_flops
    return max(flops / machine.matrix_rate, cost.weight_bytes / machine.bandwidth)


def schedule_floor(
    cost: ModelCost, machine: Machine, lengths: Sequence[tuple[int, int]], max_num_seqs: int
) -> ScheduleFloor:
    """The least cost of many requests on the ideal continuous schedule, phase by phase.

    Every prompt is computed by itself, in order, as soon as there is a place; all running sequences then decode
    together, one token a step, and a place is taken again at the step after its sequence ended. No step of an engine
    is counted, only this schedule's, so that a worse schedule shows as a lower fraction. An engine that computes
    prompts beside running decodes can overlap the two phases and beat it.

    Args:
        cost: of the model.
        machine: what it runs on.
        lengths: tokens of the prompt and tokens to generate, of each request.
        max_num_seqs: places.
    """
    waiting = deque(lengths)
    running: list[tuple[int, int]] = []  # positions visible to the next token, and tokens still to generate
    seconds = num_bytes = 0.0
    while waiting or running:
        while waiting and len(running) < max_num_seqs:
            num_prompt, num_output = waiting.popleft()
            seconds += prefill_floor_s(cost, machine, num_prompt)
            if num_output > 1:  # the prompt's logits give the first token
                running.append((num_prompt + 1, num_output - 1))
        if running:
            num_visible = sum(visible for visible, _ in running)
            seconds += decode_floor_s(cost, machine, batch=len(running), num_visible=num_visible)
            num_bytes += decode_bytes(cost, num_visible)
            running = [(visible + 1, left - 1) for visible, left in running if left > 1]
    return ScheduleFloor(seconds, num_bytes)


def _median_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)
