"""``bench throughput``: many requests of different lengths at once, as an offline job has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvllm.bench.roofline import Machine, decode_floor_s, model_cost, prefill_floor_s
from tinyvllm.bench.workload import Job, run
from tinyvllm.llm import LLM


@dataclass(frozen=True, slots=True)
class ThroughputResult:
    """One run, after a warm-up of a few requests.

    Attributes:
        num_requests, input_tokens, output_tokens: the work.
        duration_s: from the first request in to the last token out.
        tokens_per_s: generated.
        total_tokens_per_s: prompt and generated.
        ms_per_token: of a step, on average.
        fraction_of_roofline: least possible time over the measured one.
        bandwidth, matrix_rate: measured in this run.
        host_us_per_step: scheduling, batching and bookkeeping.
        num_preemptions: sequences that lost their blocks.
    """

    num_requests: int
    input_tokens: int
    output_tokens: int
    duration_s: float
    tokens_per_s: float
    total_tokens_per_s: float
    ms_per_token: float
    fraction_of_roofline: float
    bandwidth: float
    matrix_rate: float
    host_us_per_step: float
    num_preemptions: int


def measure_throughput(llm: LLM, machine: Machine, jobs: Sequence[Job], *, temperature: float) -> ThroughputResult:
    """All jobs at once, sampled at ``temperature`` as an offline job would be."""
    run(llm, [Job(job.prompt, min(4, job.num_output)) for job in jobs[:4]], temperature=temperature, name="warm-up")
    before = llm.engine.stats().num_preemptions
    timing = run(llm, jobs, temperature=temperature, name="throughput")
    input_tokens = sum(len(job.prompt) for job in jobs)
    return ThroughputResult(
        num_requests=len(jobs),
        input_tokens=input_tokens,
        output_tokens=timing.num_output,
        duration_s=timing.total_s,
        tokens_per_s=timing.num_output / timing.total_s,
        total_tokens_per_s=(input_tokens + timing.num_output) / timing.total_s,
        ms_per_token=1e3 * timing.total_s / timing.num_steps,
        fraction_of_roofline=_floor_s(llm, machine, jobs) / timing.total_s,
        bandwidth=machine.bandwidth,
        matrix_rate=machine.matrix_rate,
        host_us_per_step=1e6 * timing.host_s / timing.num_steps,
        num_preemptions=llm.engine.stats().num_preemptions - before,
    )


def _floor_s(llm: LLM, machine: Machine, jobs: Sequence[Job]) -> float:
    """The phase roofline: every prompt once, then as many decode steps as the longest output has, full batches."""
    cost = model_cost(llm.shape, element_bytes=llm.element_bytes)
    floor_s = sum(prefill_floor_s(cost, machine, len(job.prompt)) for job in jobs)
    size = llm.config.scheduler.max_num_seqs
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        for step in range(1, max(job.num_output for job in batch)):
            contexts = [len(job.prompt) + step - 1 for job in batch if job.num_output > step]
            floor_s += decode_floor_s(cost, machine, contexts)
    return floor_s
