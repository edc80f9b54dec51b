"""Prints what the emulator costs: ``python -m tests.emulator.bench_emulator``."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.emulator.samples import KERNELS, bf16_normal, upload
from tinyvllm.devices.emulator import EmulatorDevice

NUM_RUNS = 30


def median_s(action: Callable[[], object], num_runs: int = NUM_RUNS) -> float:
    """Median seconds of ``action``, after one run that does not count."""
    action()
    times = []
    for _ in range(num_runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        device = EmulatorDevice(cache_dir=Path(folder))
        print(f"compile the runtime, once     {time.perf_counter() - start:8.2f} s")
        start = time.perf_counter()
        gemm = device.compile(KERNELS / "gemm.cu").function("gemm_small")
        print(f"compile a kernel              {time.perf_counter() - start:8.2f} s")
        moments = device.compile(KERNELS / "moments.cu").function("row_moments")

    def run_gemm(size_m: int = 8, size_n: int = 256, size_k: int = 512) -> None:
        sizes = [np.int32(size_m), np.int32(size_n), np.int32(size_k)]
        device.launch(
            gemm, (size_n // 64, 1, 1), (128, 1, 1), [out, x, w, *sizes], shared_bytes=3 * (64 + 8) * (64 + 8) * 2
        )
        device.synchronize()

    out, x, w = (
        device.memory.alloc((8, 256), np.float32),
        *(upload(device, bf16_normal(0, s)) for s in ((8, 512), (256, 512))),
    )
    print(f"GEMM 8 x 256 x 512            {median_s(run_gemm) * 1e3:8.2f} ms")

    rows, sums = upload(device, bf16_normal(0, (64, 1024))), device.memory.alloc((64, 2), np.float32)

    def run_moments(num_rows: int = 64) -> None:
        device.launch(moments, (num_rows, 1, 1), (256, 1, 1), [sums, rows, np.int32(1024)])
        device.synchronize()

    num_turns = 64 * 256 * 25  # a start, twenty shuffles and four barriers for each thread
    print(f"a turn of a thread            {median_s(run_moments) / num_turns * 1e9:8.1f} ns")
    print(f"launch of one block of 256    {median_s(lambda: run_moments(1)) * 1e6:8.1f} us")


if __name__ == "__main__":
    main()
