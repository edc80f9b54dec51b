"""``bench latency``: a batch of equal prompts, prefilled together and decoded step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from tinyvllm.bench.peers import PeerSeries
from tinyvllm.bench.roofline import Machine, decode_bytes, decode_floor_s, model_cost
from tinyvllm.bench.workload import Timing, run, uniform_jobs
from tinyvllm.errors import ConfigError
from tinyvllm.llm import LLM


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What a peer needed for the same work; medians over the repetitions.

    Attributes:
        peer: its name.
        ms_per_token: of its decode step (``latency``), or of everything over the tokens asked for (``throughput``).
        tokens_per_s: generated.
        speedup: its time over ours.
        error: why there are no figures; None if there are.
    """

    peer: str
    ms_per_token: float | None = None
    tokens_per_s: float | None = None
    speedup: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """Medians over the repetitions.

    Attributes:
        batch_size, input_len, output_len: the shape.
        context_len: positions that a sequence looked at in the steps that were measured, on average.
        ms_per_token: of a decode step: the mean of all steps of a run in which every sequence got a token.
        tokens_per_s: decoded, over the whole batch.
        prefill_ms: until every sequence has its first token; in chunks beside the first decodes if the scheduler's
            ``max_num_batched_tokens`` is less than all prompts.
        fraction_of_roofline: floor of a decode step over the measured one.
        fraction_of_datasheet: bytes that a step must move over its time and the card's nominal bandwidth; None: no
            data sheet is known.
        bandwidth: bytes a second, measured in this run.
        matrix_rate: operations a second, measured in this run.
        host_us_per_step: scheduling, batching, bookkeeping and, on a device, queueing: the median step.
        host_us_mean: the same, averaged over all steps, those in which sequences begin or end included.
        device: name of the card, or ``cpu``.
        peers: who did the same work in turn with us.
    """

    batch_size: int
    input_len: int
    output_len: int
    context_len: float
    ms_per_token: float
    tokens_per_s: float
    prefill_ms: float
    fraction_of_roofline: float
    fraction_of_datasheet: float | None
    bandwidth: float
    matrix_rate: float
    host_us_per_step: float
    host_us_mean: float
    device: str
    peers: Sequence[PeerResult] = ()


def measure_latency(
    llm: LLM,
    machine: Machine,
    *,
    batch_size: int,
    input_len: int,
    output_len: int,
    repeats: int,
    peers: Sequence[PeerSeries] = (),
) -> LatencyResult:
    """Decode speed at one shape, interleaved with the peers': ours, theirs, ours, theirs, after a warm-up of each.

    Raises:
        ConfigError: no step decoded all sequences together.
    """
    jobs = uniform_jobs(llm.shape.vocab_size, batch_size, input_len, output_len, seed=0)
    timings: list[Timing] = []
    for repeat in range(repeats + 1):
        timing = run(llm, jobs, name=f"latency-{repeat}")
        if repeat:  # the first is the warm-up
            timings.append(timing)
        for peer in peers:
            peer.run(jobs, is_warm_up=repeat == 0)
    if not all(timing.decode_s for timing in timings):
        raise ConfigError(
            f"no step decoded all {batch_size} sequences together: raise --output-len, "
            "scheduler.max_num_batched_tokens or scheduler.max_num_seqs"
        )
    step_s = median(fmean(timing.decode_s) for timing in timings)
    context_len = fmean(timing.context_len for timing in timings)
    cost = model_cost(llm.shape, element_bytes=llm.element_bytes)
    visible = batch_size * context_len
    floor_s = decode_floor_s(cost, machine, batch=batch_size, num_visible=visible)
    return LatencyResult(
        batch_size=batch_size,
        input_len=input_len,
        output_len=output_len,
        context_len=context_len,
        ms_per_token=step_s * 1e3,
        tokens_per_s=batch_size / step_s,
        prefill_ms=median(timing.prefill_s for timing in timings) * 1e3,
        fraction_of_roofline=floor_s / step_s,
        fraction_of_datasheet=machine.datasheet_fraction(decode_bytes(cost, visible), step_s),
        bandwidth=machine.bandwidth,
        matrix_rate=machine.matrix_rate,
        host_us_per_step=median(timing.host_us[0] for timing in timings),
        host_us_mean=median(timing.host_us[1] for timing in timings),
        device=machine.name,
        peers=[_peer_result(peer, batch_size, step_s) for peer in peers],
    )


def _peer_result(peer: PeerSeries, batch_size: int, step_s: float) -> PeerResult:
    timings = peer.take()
    if not timings:
        return PeerResult(peer.name, error=peer.error)
    peer_s = median(timing.step_s for timing in timings)
    return PeerResult(peer.name, peer_s * 1e3, batch_size / peer_s, peer_s / step_s)
