"""Times the CUDA device itself, ``python -m tinyvllm.bench.device.cuda``: launches, graphs, copies, products.

The products are those of Llama 3.2 1B on random weights. Each is replayed in a graph over copies of the weight that
together are several times the card's cache; bytes are those of the three matrices, each counted once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from tinyvllm.bench.roofline import measure
from tinyvllm.device import Argument, Buffer
from tinyvllm.devices.cuda import CudaDevice, probe
from tinyvllm.devices.cuda.gemm import shape_of

BF16 = np.dtype(ml_dtypes.bfloat16)
PRODUCTS = {"qkv": (3072, 2048), "o": (2048, 2048), "gate+up": (16384, 2048), "down": (2048, 8192),
            "lm_head": (128256, 2048)}  # fmt: skip
ROWS = (1, 8, 32, 64, 128, 256, 1024)


def main() -> None:
    """Prints the tables; ``--no-tune`` leaves out the tuned column."""
    cuda = CudaDevice()
    bandwidth = measure(cuda).bandwidth
    print(f"read and write of 2 GiB by a copy on the card: {bandwidth / 1e12:.2f} TB/s")
    time_host(cuda)
    time_products(cuda, bandwidth, is_tuning="--no-tune" not in sys.argv)
    print(probe())


def host_us(work: Callable[[], object], finish: Callable[[], None], repeats: int = 300) -> float:
    """Median microseconds that ``work`` keeps the host; the card is empty before and after."""
    times = []
    for i in range(repeats):
        start = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - start) / 1000)
        if i % 50 == 49:
            finish()
    return float(np.median(times))


def time_host(cuda: CudaDevice) -> None:
    """What the host pays for each call, and what the card pays for each node of a graph."""
    scale, size = cuda.compile(Path(__file__).with_name("scale.cu")).function("scale"), 1024
    y, x = (cuda.memory.alloc((size,), np.float32) for _ in range(2))
    arguments: list[Argument] = [y, x, np.float32(1), np.int32(size)]

    def launch(pdl: bool = False) -> None:
        cuda.launch(scale, (4, 1, 1), (256, 1, 1), arguments, pdl=pdl)

    def launches(pdl: bool) -> None:
        for _ in range(83):
            launch(pdl)

    with cuda.capture() as graph:
        launches(True)
    small = np.zeros(256, np.int32)
    buffer = cuda.memory.alloc(small.shape, small.dtype)
    m, w = cuda.memory.alloc((8, 2048), BF16), cuda.memory.alloc((2048, 2048), BF16)
    cuda.gemm(m, m, w)
    late = [cuda.memory.start_download(buffer)]

    def download() -> None:
        late.append(cuda.memory.start_download(buffer))
        late.pop(0).wait()

    done = cuda.synchronize
    print(
        f"host: launch {host_us(launch, done):.2f}, with pdl {host_us(lambda: launch(True), done):.2f}, "
        f"gemm {host_us(lambda: cuda.gemm(m, m, w), done):.2f}, "
        f"upload of 1 KB {host_us(lambda: cuda.memory.upload(buffer, small), done):.2f}, "
        f"start_download of 1 KB and wait for the one before {host_us(download, done):.2f}, "
        f"replay of 83 nodes {host_us(graph.replay, done, 100):.2f} us"
    )
    print(
        f"card: a small node in a graph of 83 takes {cuda.time_us(lambda: launches(False), 21) / 83:.3f} us, "
        f"with pdl {cuda.time_us(lambda: launches(True), 21) / 83:.3f} us"
    )


def time_products(cuda: CudaDevice, bandwidth: float, is_tuning: bool) -> None:
    """A row per product and number of rows: what the library proposes, the fastest found, and batch-invariant."""
    invariant = CudaDevice(batch_invariant=True)
    print(f"{'product':8} {'M':>5} {'us':>8} {'tuned':>8} {'TFLOP/s':>8} {'of copy bandwidth':>18} {'tried':>6} "
          f"{'invariant':>10}")  # fmt: skip
    for name, (size_n, size_k) in PRODUCTS.items():
        weight = random(cuda, (size_n, size_k), 0.02)
        for size_m in ROWS:
            x = random(cuda, (size_m, size_k), 1.0)
            out = random(cuda, (size_m, size_n), 1.0)
            accumulate = name in ("o", "down")
            first = best = time_product(cuda, out, x, weight, accumulate)
            tried = 1
            if is_tuning:
                timing = cuda.tune_gemm(out, x, weight, accumulate=accumulate)
                first, best, tried = timing.untuned_microseconds, timing.microseconds, timing.num_tried
            cuda.synchronize()  # the other device works in a stream of its own
            fixed = time_product(invariant, out, x, weight, accumulate)
            shape = shape_of(out, x, weight)
            print(f"{name:8} {size_m:5} {first:8.2f} {best:8.2f} {shape.flops / best / 1e6:8.1f} "
                  f"{shape.nbytes / (1e-6 * best) / bandwidth:18.2f} {tried:6} {fixed:10.2f}", flush=True)  # fmt: skip


def time_product(cuda: CudaDevice, out: Buffer, x: Buffer, weight: Buffer, accumulate: bool) -> float:
    """Microseconds of the choice in use, over enough copies of the weight to leave the cache."""
    copies = [cuda.memory.alloc(weight.shape, weight.dtype) for _ in range(1 + min(32, (200 << 20) // weight.nbytes))]
    for copy in copies:
        cuda.memory.copy(copy, weight)

    def work() -> None:
        for copy in copies:
            cuda.gemm(out, x, copy, accumulate=accumulate)

    return cuda.time_us(work) / len(copies)


def random(cuda: CudaDevice, shape: Sequence[int], scale: float) -> Buffer:
    """Normal values, four million of them over and over."""
    block = (np.random.default_rng(0).standard_normal(1 << 22, np.float32) * np.float32(scale)).astype(BF16)
    buffer = cuda.memory.alloc(tuple(shape), BF16)
    cuda.memory.upload(buffer, np.resize(block, tuple(shape)))
    return buffer


if __name__ == "__main__":
    main()
