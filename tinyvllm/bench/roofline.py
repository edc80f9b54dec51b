"""What a machine can do, and how long a step must take at least.

A decode step reads every weight once and every key and value of the context once; a prefill multiplies. Whichever of
bytes over bandwidth and operations over matrix rate is larger is the floor (Williams et al. 2009).
"""

from __future__ import annotations

import time
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


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured ceilings.

    Attributes:
        bandwidth: bytes a second, reading a matrix larger than the caches once (as a decode step does).
        matrix_rate: floating-point operations a second of a large matrix product.
    """

    bandwidth: float
    matrix_rate: float


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


def measure_cpu() -> Machine:
    """The CPU's ceilings, with the threads that the BLAS uses; medians."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1 << 12, _STREAM_BYTES >> 14), dtype=np.float32)
    row = rng.standard_normal((1, weight.shape[0]), dtype=np.float32)
    square = rng.standard_normal((_MATRIX_SIZE, _MATRIX_SIZE), dtype=np.float32)
    stream_s = _median_s(lambda: row @ weight)
    matrix_s = _median_s(lambda: square @ square)
    return Machine(weight.nbytes / stream_s, 2.0 * _MATRIX_SIZE**3 / matrix_s)


def measure(device: Any | None) -> Machine:
    """The ceilings of the device that an engine runs on; None is the CPU.

    Raises:
        ConfigError: the device has no clock of its own (the emulator), so there is nothing to compare with.
    """
    if device is None:
        return measure_cpu()
    if not hasattr(device, "time_us"):
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
    return Machine(2e6 * _COPY_BYTES / copy_us, 2e6 * _DEVICE_MATRIX_SIZE**3 / matrix_us)


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


def decode_floor_s(cost: ModelCost, machine: Machine, context_lens: Sequence[int]) -> float:
    """Least seconds of a step that computes one token of each sequence, contexts counted before it."""
    batch = len(context_lens)
    weights = max(cost.weight_bytes / machine.bandwidth, cost.flops_per_token * batch / machine.matrix_rate)
    pairs = sum(context_lens) + batch
    bytes_s = cost.kv_bytes_per_token * pairs / machine.bandwidth
    return weights + max(bytes_s, cost.attention_flops_per_pair * pairs / machine.matrix_rate)


def prefill_floor_s(cost: ModelCost, machine: Machine, num_tokens: int) -> float:
    """Least seconds to compute a prompt and the logits after it; causal attention is half of all pairs."""
    head_flops = cost.flops_per_token - cost.layer_flops_per_token
    attention = cost.attention_flops_per_pair * num_tokens**2 / 2
    flops = cost.layer_flops_per_token * num_tokens + attention + head_flops
    return max(flops / machine.matrix_rate, cost.weight_bytes / machine.bandwidth)


def _median_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)
