"""What a card does before the first request: memory for every kernel, and graphs of the common kinds of step.

Both run steps on rows of padding, which read no cache and write nothing that a request could read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tinyvllm._terminal import each_shown
from tinyvllm.batch import SamplingRows
from tinyvllm.runner.gpu_runner import GpuRunner, decode_sizes
from tinyvllm.runner.prompt_graphs import StepSize
from tinyvllm.runner.token_sampling import MAX_LISTED
from tinyvllm.workspace import StepLimits

_PROMPT_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def rehearse(runner: GpuRunner, limits: StepLimits) -> str:
    """Run steps of all sizes, so that every kernel has the memory that it will ever need before the cache is sized.

    Args:
        runner: with a cache of a few blocks.
        limits: of a step.
    Returns:
        a line for the start-up report.
    """
    began = time.perf_counter()
    steps = list(_prompt_steps(limits))
    sizes = decode_sizes(limits.max_seqs)
    simplest = fullest = None
    if runner.is_sampling_here:
        simplest, fullest = runner.kind_of(COMMON[0]), runner.kind_of(EVERYTHING)
    decodes = [(size, simplest) for size in sizes] + [(size, fullest) for size in {sizes[0], sizes[-1]}]
    for step in each_shown("preparing kernels", steps):
        runner.rehearse_prompts(step, fullest)
    for size, kind in each_shown("preparing kernels", decodes):
        runner.rehearse_decode(size, kind)
    num_steps = len(steps) + len(decodes)
    return f"kernels: prepared by {num_steps} steps of padding in {time.perf_counter() - began:.1f} s"


def record_common(runner: GpuRunner, limits: StepLimits) -> str:
    """Record the graphs of decode steps that nearly all requests need.

    Returns:
        a line for the start-up report.
    """
    if not runner.is_sampling_here:
        return "graphs: none, because the host samples"
    began = time.perf_counter()
    kinds = dict.fromkeys(map(runner.kind_of, COMMON))
    graphs = [(size, kind) for kind in kinds for size in decode_sizes(limits.max_seqs)]
    for size, kind in each_shown("recording graphs", graphs):
        runner.record(size, kind)
    seconds = time.perf_counter() - began
    return (
        f"graphs: {len(graphs)} recorded in {seconds:.1f} s (enforce_eager: true skips it); others when they first come"
    )


def _prompt_steps(limits: StepLimits) -> Iterator[StepSize]:
    tokens = [size for size in _PROMPT_SIZES if size < limits.max_tokens]
    for num_tokens in (*tokens, limits.max_tokens):
        for has_decodes in (False, True):
            yield StepSize(num_tokens, min(num_tokens, limits.max_seqs), has_decodes)


COMMON = tuple(SamplingRows.of(1, **each) for each in ({"temperature": 0}, {}, {"top_p": 0.9}))
"""Requests of the kinds whose graphs are recorded at start: greedy, random, and cut; others when they first come."""
EVERYTHING = SamplingRows.of(1, temperature=1, top_p=0.9, num_logprobs=MAX_LISTED, has_rules=True)
