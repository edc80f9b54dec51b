"""``bench invariance``: what bit-equal logits in any company cost, step by step, in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tinyvllm.bench.workload import run, uniform_jobs
from tinyvllm.config.resolve import Resolved
from tinyvllm.llm import LLM


@dataclass(frozen=True, slots=True)
class InvarianceResult:
    """Medians of a decode step at one batch size.

    Attributes:
        batch_size: sequences.
        ms_per_token: without the promise.
        invariant_ms_per_token: with ``batch_invariant: true``.
        price: the second over the first.
        prefill_price: the same for the prompts.
    """

    batch_size: int
    ms_per_token: float
    invariant_ms_per_token: float
    price: float
    prefill_price: float


def measure_invariance(
    plain: Resolved, invariant: Resolved, *, batch_sizes: Sequence[int], input_len: int, output_len: int, repeats: int
) -> list[InvarianceResult]:
    """Both settings in turn, the same prompts."""
    llms = (LLM.from_config(plain), LLM.from_config(invariant))
    results = []
    for batch_size in batch_sizes:
        jobs = uniform_jobs(llms[0].shape.vocab_size, batch_size, input_len, output_len, seed=0)
        steps: tuple[list[float], list[float]] = ([], [])
        prefills: tuple[list[float], list[float]] = ([], [])
        for repeat in range(repeats + 1):
            for llm, step, prefill in zip(llms, steps, prefills, strict=True):
                timing = run(llm, jobs, name=f"invariance-{batch_size}-{repeat}")
                if repeat:  # the first is the warm-up
                    step.append(median(timing.decode_s))
                    prefill.append(timing.prefill_s)
        off, on = (1e3 * median(each) for each in steps)
        results.append(InvarianceResult(batch_size, off, on, on / off, median(prefills[1]) / median(prefills[0])))
    return results
