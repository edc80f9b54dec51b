"""What a card does before the first request: memory for every kernel, and graphs of the common kinds of step.

Both run steps on rows of padding, which read no cache and write nothing that a request could read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tinyvllm._terminal import each_shown
from tinyvllm.kernels.logprobs import MAX_LISTED
from tinyvllm.runner.device_runner import DeviceRunner, decode_sizes
from tinyvllm.runner.prompt_graphs import StepSize
from tinyvllm.runner.sampling import SamplingMode
from tinyvllm.workspace import StepLimits

GREEDY = SamplingMode(is_greedy=True, may_cut=False, has_rules=False, num_listed=None)
RANDOM = SamplingMode(is_greedy=False, may_cut=False, has_rules=False, num_listed=None)
CUT = SamplingMode(is_greedy=False, may_cut=True, has_rules=False, num_listed=None)
EVERYTHING = SamplingMode(is_greedy=False, may_cut=True, has_rules=True, num_listed=MAX_LISTED)

COMMON_MODES = (GREEDY, RANDOM, CUT)
"""Kinds of sampling whose graphs are recorded at start; those of the others when they first come."""

_PROMPT_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def rehearse(runner: DeviceRunner, limits: StepLimits) -> str:
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
    least, most = (GREEDY, EVERYTHING) if runner.is_sampling_here else (None, None)
    decodes = [(size, least) for size in sizes] + [(size, most) for size in {sizes[0], sizes[-1]}]
    for step in each_shown("preparing kernels", steps):
        runner.rehearse_prompts(step, most)
    for size, mode in each_shown("preparing kernels", decodes):
        runner.rehearse_decode(size, mode)
    num_steps = len(steps) + len(decodes)
    return f"kernels: prepared by {num_steps} steps of padding in {time.perf_counter() - began:.1f} s"


def record_common(runner: DeviceRunner, limits: StepLimits) -> str:
    """Record the graphs of decode steps that nearly all requests need.

    Returns:
        a line for the start-up report.
    """
    if not runner.is_sampling_here:
        return "graphs: none, because the host samples"
    began = time.perf_counter()
    kinds = [(size, mode) for mode in COMMON_MODES for size in decode_sizes(limits.max_seqs)]
    for size, mode in each_shown("recording graphs", kinds):
        runner.record(size, mode)
    seconds = time.perf_counter() - began
    return (
        f"graphs: {len(kinds)} recorded in {seconds:.1f} s (enforce_eager: true skips it); others when they first come"
    )


def _prompt_steps(limits: StepLimits) -> Iterator[StepSize]:
    tokens = [size for size in _PROMPT_SIZES if size < limits.max_tokens]
    for num_tokens in (*tokens, limits.max_tokens):
        for has_decodes in (False, True):
            yield StepSize(num_tokens, min(num_tokens, limits.max_seqs), has_decodes)
