"""``bench load``: how long a checkpoint takes to load, and how much memory at its peak."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

from tinyvllm.bench.roofline import model_cost
from tinyvllm.config.resolve import Resolved
from tinyvllm.llm import LLM


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One load, in a process that did nothing before.

    Attributes:
        seconds: until the engine is ready.
        weight_bytes: of all weights in float32.
        peak_bytes: the most that the process ever held, interpreter and libraries included.
        peak_ratio: ``peak_bytes / weight_bytes``.
    """

    seconds: float
    weight_bytes: float
    peak_bytes: int
    peak_ratio: float


def measure_load(config: Resolved) -> tuple[LoadResult, LLM]:
    """Load once; the result and what was loaded."""
    began = time.perf_counter()
    llm = LLM.from_config(config)
    seconds = time.perf_counter() - began
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    weight_bytes = model_cost(llm.shape, element_bytes=4).weight_bytes
    return LoadResult(seconds, weight_bytes, peak, peak / weight_bytes), llm
