"""How long work takes that is queued on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from tinyvllm.device import Gpu


def time_us(device: Gpu, work: Callable[[], None], repeats: int) -> float:
    """Median microseconds of what ``work`` queues, recorded once and replayed.

    Args:
        device: where it runs; its own clock is read if it has one (a card), otherwise the host's.
        work: queues launches and products. It is called once before it is recorded, so that nothing is loaded then.
        repeats: how often it is measured.
    """
    work()
    device.synchronize()
    if hasattr(device, "time_us"):
        return float(device.time_us(work, repeats))
    with device.capture() as graph:
        work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        graph.replay()
        device.synchronize()
        times.append(time.perf_counter() - began)
    return 1e6 * median(times)


def median_s(action: Callable[[], object], repeats: int) -> float:
    """Median seconds of ``action``, after one run that does not count."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times)
