"""``bench prefill``: one prompt by itself, from its arrival to its first token."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from tinyvllm.bench.roofline import Machine, model_cost, prefill_floor_s
from tinyvllm.bench.workload import heap_set_aside, run_at_once, uniform_jobs
from tinyvllm.llm import LLM

_WARM_UPS = 3  # a graph is recorded when its size comes for the second time


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """Medians over the repetitions.

    Attributes:
        input_len: tokens of the prompt.
        prefill_ms: until its first token is read back.
        slowest_ms: the longest of the runs.
        tokens_per_s: of the prompt.
        num_steps: of the engine for one run; more than one if the scheduler cut the prompt.
        fraction_of_roofline: least possible time over the measured one.
        bandwidth: bytes a second, measured in this run.
        matrix_rate: operations a second, measured in this run.
        device: name of the card, or ``cpu``.
    """

    input_len: int
    prefill_ms: float
    slowest_ms: float
    tokens_per_s: float
    num_steps: int
    fraction_of_roofline: float
    bandwidth: float
    matrix_rate: float
    device: str


def measure_prefill(llm: LLM, machine: Machine, input_len: int, *, repeats: int) -> PrefillResult:
    """The same length again and again, another prompt each time, so that nothing can be reused."""
    times = []
    jobs = [uniform_jobs(llm.shape.vocab_size, 1, input_len, 1, seed=i) for i in range(repeats + _WARM_UPS)]
    with heap_set_aside():
        for i, job in enumerate(jobs):
            timing = run_at_once(llm, job, name=f"prefill-{input_len}-{i}")
            if i >= _WARM_UPS:
                times.append(timing.total_s)
    seconds = median(times)
    cost = model_cost(llm.shape, element_bytes=llm.element_bytes)
    return PrefillResult(
        input_len=input_len,
        prefill_ms=seconds * 1e3,
        slowest_ms=max(times) * 1e3,
        tokens_per_s=input_len / seconds,
        num_steps=timing.num_steps,
        fraction_of_roofline=prefill_floor_s(cost, machine, input_len) / seconds,
        bandwidth=machine.bandwidth,
        matrix_rate=machine.matrix_rate,
        device=machine.name,
    )
