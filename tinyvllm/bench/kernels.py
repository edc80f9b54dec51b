"""One op by itself: microseconds, bytes, and the fraction of what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tinyvllm.bench.roofline import Machine, measure
from tinyvllm.shapes import ModelShape
from tinyvllm.testing.check import find_subjects
from tinyvllm.testing.parameters import MAX_LOGITS_ROWS, Parameters
from tinyvllm.testing.subject import CASES, Subject

_COLD_BYTES = 256 * 2**20
"""What is gone through before a call finds its operands again: more than any cache holds."""
_MAX_COPIES = 512
_MIN_SECONDS = 0.3
_REPEATS = 7


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """What one implementation takes.

    Attributes:
        op, implementation, device: who was measured.
        num_rows: ``T``.
        context_len: of each sequence, this step included.
        us: median microseconds of a call whose operands are in no cache.
        megabytes: that it must move.
        gigabytes_per_s: and moves.
        fraction_of_bandwidth: of what a large copy reaches.
        teraflops: that it computes a second.
        fraction_of_matrix_rate: of what a large matrix product reaches.
    """

    op: str
    implementation: str
    device: str
    num_rows: int
    context_len: int
    us: float
    megabytes: float
    gigabytes_per_s: float
    fraction_of_bandwidth: float
    teraflops: float
    fraction_of_matrix_rate: float


def measure_kernels(
    op: str,
    model: ModelShape,
    *,
    device: str,
    rows: Sequence[int],
    context_len: int,
    block_size: int = 16,
    batch_invariant: bool = False,
    implementation: str | None = None,
    plugins: Sequence[str | Path] = (),
) -> tuple[Machine, list[KernelTiming]]:
    """The ceilings of a device, and every implementation of ``op`` there, with the sizes of a model.

    Args:
        op: the op.
        model: whose sizes it has.
        device: ``cpu`` or ``cuda``.
        rows: tokens of a step, sequences of one token each.
        context_len: of each sequence, this step included; the same in all.
        block_size: of the cache.
        batch_invariant: as an engine may ask for it.
        implementation, plugins: as of ``check_op``.
    Raises:
        ConfigError: the device has no clock.
        PluginError: an implementation does not serve this model.
    """
    subjects = find_subjects(op, device, implementation, plugins)
    machine = measure(subjects[0].device)
    cases = [
        _parameters(model, num_rows, context_len, block_size, batch_invariant=batch_invariant) for num_rows in rows
    ]
    return machine, [_timed(subject, parameters, machine) for parameters in cases for subject in subjects]


def _parameters(
    model: ModelShape, num_rows: int, context_len: int, block_size: int, *, batch_invariant: bool
) -> Parameters:
    return Parameters(
        model=model,
        num_tokens=(1,) * num_rows,
        num_known=(context_len - 1,) * num_rows,
        block_size=block_size,
        batch_invariant=batch_invariant,
        max_context=context_len,
        max_logits_rows=max(MAX_LOGITS_ROWS, num_rows),
    )


def _timed(subject: Subject, parameters: Parameters, machine: Machine) -> KernelTiming:
    num_bytes, flops = cost(subject.op, parameters, element_bytes=4 if subject.device_name == "cpu" else 2)
    num_copies = int(min(_MAX_COPIES, max(1, _COLD_BYTES // num_bytes)))
    if subject.device_name == "cpu":
        us = _on_host_us(subject, parameters, num_copies)
    else:
        us = _on_device_us(subject, parameters, num_copies)
    return KernelTiming(
        op=subject.op,
        implementation=subject.implementation,
        device=subject.device_name,
        num_rows=parameters.num_rows,
        context_len=parameters.max_context,
        us=us,
        megabytes=num_bytes / 1e6,
        gigabytes_per_s=num_bytes / us / 1e3,
        fraction_of_bandwidth=num_bytes / us * 1e6 / machine.bandwidth,
        teraflops=flops / us / 1e6,
        fraction_of_matrix_rate=flops / us * 1e6 / machine.matrix_rate,
    )


def _on_device_us(subject: Subject, parameters: Parameters, num_copies: int) -> float:
    device: Any = subject.device
    case, op, bench = CASES[subject.op](parameters), subject.bound(parameters), subject.bench(parameters)
    calls: list[tuple[Any, ...]] = []
    for _ in range(num_copies):
        case.run(lambda *arguments: calls.append(arguments), bench)
    op(*calls[0])  # launchers are made, and their scratch memory allocated, at first use
    device.synchronize()

    def work() -> None:
        for arguments in calls:
            op(*arguments)

    return float(device.time_us(work, _REPEATS)) / num_copies


def _on_host_us(subject: Subject, parameters: Parameters, num_copies: int) -> float:
    case, op, bench = CASES[subject.op](parameters), subject.bound(parameters), subject.bench(parameters)
    calls: list[Callable[[], Any]] = []

    def recorded(*arguments: Any) -> None:
        calls.append(partial(op, *arguments))

    for _ in range(num_copies):
        case.run(recorded, bench)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _REPEATS or time.perf_counter() - start < _MIN_SECONDS:
        before = time.perf_counter()
        for call in calls:
            call()
        times.append((time.perf_counter() - before) / num_copies)
    return 1e6 * median(times)


def cost(op: str, parameters: Parameters, *, element_bytes: int) -> tuple[float, float]:
    """Bytes that a call must move, and operations of its matrix products.

    Args:
        op: the op.
        parameters: sizes; all contexts are equally long.
        element_bytes: of activations, weights and cache.
    """
    m, t, b = parameters.model, parameters.num_rows, element_bytes
    query, kv = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    e, f, v, qkv = m.hidden_size, m.intermediate_size, m.vocab_size, query + 2 * kv

    def product(size: int, num_outputs: int) -> tuple[float, float]:
        return b * size * num_outputs, 2.0 * t * size * num_outputs

    def moved(*columns: int) -> float:
        return float(b * t * sum(columns))

    costs: dict[str, tuple[float, float]] = {
        "embedding": (moved(2 * e), 0),
        "rms_norm": (moved(2 * e) + b * e, 0),
        "linear": (product(query, e)[0] + moved(query, e), product(query, e)[1]),
        "add": (moved(3 * e), 0),
        "rope_append": (moved(2 * qkv), 0),
        "silu_mul": (moved(3 * f), 0),
        "gelu_mul": (moved(3 * f), 0),
        "scale": (moved(2 * e), 0),
        "norm_columns": (moved(2 * kv), 0),
        "lm_head": (product(e, v)[0] + moved(e) + 4.0 * t * v, product(e, v)[1]),
        "argmax": (4.0 * t * v, 0),
        "rms_norm_qkv_rope_append": (product(e, qkv)[0] + moved(e, qkv), product(e, qkv)[1]),
        "linear_residual": (product(f, e)[0] + moved(f, 2 * e), product(f, e)[1]),
        "rms_norm_gate_up_silu": (product(e, 2 * f)[0] + moved(e, f), product(e, 2 * f)[1]),
        "rms_norm_lm_head": (product(e, v)[0] + moved(e) + 4.0 * t * v, product(e, v)[1]),
        "lm_head_argmax": (product(e, v)[0] + moved(e) + 4.0 * t, product(e, v)[1]),
    }
    return costs[op]
