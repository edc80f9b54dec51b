"""``bench latency``: a batch of equal prompts, prefilled together and decoded step by step."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from tinyvllm.bench.peers import TransformersPeer
from tinyvllm.bench.roofline import Machine, decode_floor_s, model_cost
from tinyvllm.bench.workload import run, uniform_jobs
from tinyvllm.llm import LLM


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """Medians over the repetitions.

    Attributes:
        batch_size, input_len, output_len: the shape.
        ms_per_token: of one decode step.
        tokens_per_s: decoded, over the whole batch.
        prefill_ms: until every sequence has its first token.
        fraction_of_roofline: floor of a decode step over the measured one.
        bandwidth: bytes a second, measured in this run.
        matrix_rate: operations a second, measured in this run.
        host_us_per_step: scheduling, batching and bookkeeping.
        peer: its name; None if there was none.
        peer_ms_per_token: of the peer's decode step.
        speedup: the peer's time over ours.
    """

    batch_size: int
    input_len: int
    output_len: int
    ms_per_token: float
    tokens_per_s: float
    prefill_ms: float
    fraction_of_roofline: float
    bandwidth: float
    matrix_rate: float
    host_us_per_step: float
    peer: str | None = None
    peer_ms_per_token: float | None = None
    speedup: float | None = None


def measure_latency(
    llm: LLM,
    machine: Machine,
    *,
    batch_size: int,
    input_len: int,
    output_len: int,
    repeats: int,
    peer: TransformersPeer | None = None,
) -> LatencyResult:
    """Decode speed at one shape, interleaved with the peer's: ours, peer, ours, peer, after a warm-up of each."""
    shape = llm.shape
    jobs = uniform_jobs(shape.vocab_size, batch_size, input_len, output_len, seed=0)
    steps, prefills, hosts, peers = [], [], [], []
    for repeat in range(repeats + 1):
        timing = run(llm, jobs, name=f"latency-{repeat}")
        peer_s = None
        if peer is not None:
            first_s, all_s = peer.run(jobs)
            peer_s = (all_s - first_s) / (output_len - 1)
        if repeat == 0:
            continue  # warm-up
        steps.append(median(timing.decode_s))
        prefills.append(timing.prefill_s)
        hosts.append(timing.host_s / timing.num_steps)
        if peer_s is not None:
            peers.append(peer_s)
    step_s = median(steps)
    cost = model_cost(shape, element_bytes=llm.element_bytes)
    floor_s = decode_floor_s(cost, machine, [input_len + output_len // 2] * batch_size)
    extra: dict[str, Any] = {}
    if peer is not None:
        extra = {"peer": peer.name, "peer_ms_per_token": median(peers) * 1e3, "speedup": median(peers) / step_s}
    return LatencyResult(
        batch_size=batch_size,
        input_len=input_len,
        output_len=output_len,
        ms_per_token=step_s * 1e3,
        tokens_per_s=batch_size / step_s,
        prefill_ms=median(prefills) * 1e3,
        fraction_of_roofline=floor_s / step_s,
        bandwidth=machine.bandwidth,
        matrix_rate=machine.matrix_rate,
        host_us_per_step=median(hosts) * 1e6,
        **extra,
    )
