"""Prints what the emulator costs: ``python -m tinyvllm.bench.device.emulator``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from tinyvllm.bench.device.launchers import LinearRows
from tinyvllm.bench.device.timing import median_s
from tinyvllm.devices.emulator import EmulatorDevice
from tinyvllm.testing.case import Bench
from tinyvllm.testing.numbers import BF16, bf16

NUM_ROWS, NUM_COLUMNS, NUM_THREADS = 64, 1024, 256
_TURNS_PER_THREAD = 25
"""Of ``row_sums``: a start, twenty shuffles and four barriers."""
_REPEATS = 30


def main() -> None:
    """Prints a line a figure; compiles in a folder of its own, which is removed."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        device = EmulatorDevice(cache_dir=Path(folder))
        print(f"compile the runtime, once     {time.perf_counter() - start:8.2f} s")
        start = time.perf_counter()
        row_sums = device.compile(Path(__file__).with_name("row_sums.cu")).function("row_sums")
        print(f"compile a kernel              {time.perf_counter() - start:8.2f} s")
        linear = LinearRows(device, in_features=512, out_features=256, max_rows=8)

    put, rng = Bench(device).put, np.random.default_rng(0)
    x, weight = put(bf16(rng.standard_normal((8, 512)))), put(bf16(rng.standard_normal((256, 512))))
    out = device.memory.alloc((8, 256), BF16)

    def multiply() -> None:
        linear(out, x, weight)
        device.synchronize()

    print(f"GEMM 8 x 256 x 512            {median_s(multiply, _REPEATS) * 1e3:8.2f} ms")

    rows, sums = put(bf16(rng.standard_normal((NUM_ROWS, NUM_COLUMNS)))), device.memory.alloc((NUM_ROWS, 2), np.float32)

    def add_up(num_rows: int) -> None:
        device.launch(row_sums, (num_rows, 1, 1), (NUM_THREADS, 1, 1), [sums, rows, np.int32(NUM_COLUMNS)])
        device.synchronize()

    num_turns = NUM_ROWS * NUM_THREADS * _TURNS_PER_THREAD
    print(f"a turn of a thread            {median_s(lambda: add_up(NUM_ROWS), _REPEATS) / num_turns * 1e9:8.1f} ns")
    print(f"launch of one block of {NUM_THREADS}    {median_s(lambda: add_up(1), _REPEATS) * 1e6:8.1f} us")


if __name__ == "__main__":
    main()
