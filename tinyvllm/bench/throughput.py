"""``bench throughput``: many requests of different lengths at once, as an offline job has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tinyvllm.bench.latency import PeerResult
from tinyvllm.bench.peers import PeerSeries
from tinyvllm.bench.roofline import Machine, model_cost, schedule_floor
from tinyvllm.bench.workload import Job, run
from tinyvllm.llm import LLM


@dataclass(frozen=True, slots=True)
class ThroughputResult:
    """Medians over the runs, after a warm-up.

    Attributes:
        num_requests, input_tokens, output_tokens: the work.
        max_num_seqs: sequences that could run at once.
        duration_s: from the first request in to the last token out.
        slowest_s: the longest of the runs.
        tokens_per_s: generated.
        total_tokens_per_s: prompt and generated.
        ms_per_token: of a step, on average.
        fraction_of_roofline: least possible time, see :func:`~tinyvllm.bench.roofline.schedule_floor`, over the
            measured one.
        fraction_of_datasheet: bytes that decoding must move on that schedule, over the time and the card's nominal
            bandwidth; None: no data sheet is known.
        bandwidth, matrix_rate: measured in this run.
        host_us_per_step: scheduling, batching, bookkeeping and, on a device, queueing: the median step.
        host_us_mean: the same, averaged over all steps, those in which sequences begin or end included.
        num_steps: of the engine.
        num_preemptions: sequences that lost their blocks, over all runs.
        device: name of the card, or ``cpu``.
        peers: who did the same work in turn with us, greedily and in one batch that runs until its longest output is
            there; only tokens asked for count.
    """

    num_requests: int
    input_tokens: int
    output_tokens: int
    max_num_seqs: int
    duration_s: float
    slowest_s: float
    tokens_per_s: float
    total_tokens_per_s: float
    ms_per_token: float
    fraction_of_roofline: float
    fraction_of_datasheet: float | None
    bandwidth: float
    matrix_rate: float
    host_us_per_step: float
    host_us_mean: float
    num_steps: int
    num_preemptions: int
    device: str
    peers: Sequence[PeerResult] = ()


def measure_throughput(
    llm: LLM,
    machine: Machine,
    jobs: Sequence[Job],
    *,
    temperature: float,
    repeats: int = 1,
    peers: Sequence[PeerSeries] = (),
) -> ThroughputResult:
    """All jobs at once, sampled at ``temperature`` as an offline job would be; ours and theirs in turn."""
    _warm_up(llm, jobs, temperature)
    before = llm.engine.stats().num_preemptions
    timings = []
    for repeat in range(repeats):
        timings.append(run(llm, jobs, temperature=temperature, name=f"throughput-{repeat}"))
        for peer in peers:
            peer.run(jobs)
    duration_s = median(timing.total_s for timing in timings)
    num_steps = round(median(timing.num_steps for timing in timings))
    input_tokens, output_tokens = sum(len(job.prompt) for job in jobs), timings[0].num_output
    cost = model_cost(llm.shape, element_bytes=llm.element_bytes)
    max_num_seqs = llm.config.scheduler.max_num_seqs
    lengths = [(len(job.prompt), job.num_output) for job in jobs]
    floor = schedule_floor(cost, machine, lengths, max_num_seqs)
    return ThroughputResult(
        num_requests=len(jobs),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        max_num_seqs=max_num_seqs,
        duration_s=duration_s,
        slowest_s=max(timing.total_s for timing in timings),
        tokens_per_s=output_tokens / duration_s,
        total_tokens_per_s=(input_tokens + output_tokens) / duration_s,
        ms_per_token=1e3 * duration_s / num_steps,
        fraction_of_roofline=floor.seconds / duration_s,
        fraction_of_datasheet=machine.datasheet_fraction(floor.decode_bytes, duration_s),
        bandwidth=machine.bandwidth,
        matrix_rate=machine.matrix_rate,
        host_us_per_step=median(timing.host_us[0] for timing in timings),
        host_us_mean=median(timing.host_us[1] for timing in timings),
        num_steps=num_steps,
        num_preemptions=llm.engine.stats().num_preemptions - before,
        device=machine.name,
        peers=[_peer_result(peer, output_tokens, duration_s) for peer in peers],
    )


def _warm_up(llm: LLM, jobs: Sequence[Job], temperature: float) -> None:
    """On a device everything once: graphs of all sizes of batch are recorded then. The CPU has nothing to record."""
    few = jobs if llm.device.name != "cpu" else [Job(job.prompt, min(4, job.num_output)) for job in jobs[:4]]
    run(llm, few, temperature=temperature, name="warm-up")


def _peer_result(peer: PeerSeries, output_tokens: int, duration_s: float) -> PeerResult:
    timings = peer.take()
    if not timings:
        return PeerResult(peer.name, error=peer.error)
    peer_s = median(timing.total_s for timing in timings)
    return PeerResult(peer.name, 1e3 * peer_s / output_tokens, output_tokens / peer_s, peer_s / duration_s)
