"""The sample kernels, each run once and compared with NumPy; also what the sanitizer processes run, by name.

``run_X(device, source, ...)`` raises AssertionError where the kernel is wrong. The shapes by default are large enough
that a missing barrier has a chance to show.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import ml_dtypes
import numpy as np

from tinyvllm.device import Argument, Array, Buffer, Gpu

KERNELS = Path(__file__).parent / "kernels"
BF16_EPSILON = 2.0**-8


def upload(device: Gpu, array: Array) -> Buffer:
    """A buffer with the contents of ``array``."""
    buffer = device.memory.alloc(array.shape, array.dtype)
    device.memory.upload(buffer, array)
    return buffer


def bf16_normal(seed: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(ml_dtypes.bfloat16)


def run_moments(device: Gpu, source: str = "", num_rows: int = 6, num_columns: int = 600, seed: int = 0) -> None:
    function = device.compile(Path(source or KERNELS / "moments.cu")).function("row_moments")
    x = bf16_normal(seed, (num_rows, num_columns))
    out = device.memory.alloc((num_rows, 2), np.float32)
    arguments: list[Argument] = [out, upload(device, x), np.int32(num_columns)]
    device.launch(function, (num_rows, 1, 1), (256, 1, 1), arguments)
    exact = x.astype(np.float64)
    expected = np.stack([exact.mean(axis=1), exact.var(axis=1)], axis=1)  # [R, 2]
    # Each of num_columns additions rounds a partial sum that is at most the sum of magnitudes.
    bound = num_columns * 2.0**-24 * np.stack([np.abs(exact).mean(axis=1), (exact**2).mean(axis=1)], axis=1)
    assert (np.abs(device.memory.download(out) - expected) <= 4 * bound).all()


def run_maxima(device: Gpu, source: str = "", num_rows: int = 6, num_columns: int = 600, seed: int = 0) -> None:
    function = device.compile(Path(source or KERNELS / "maxima.cu")).function("row_maxima")
    x = np.random.default_rng(seed).integers(-99, 99, (num_rows, num_columns)).astype(np.float32)
    out = device.memory.alloc((num_rows, 8, 2), np.float32)
    device.launch(function, (num_rows, 1, 1), (256, 1, 1), [out, upload(device, x), np.int32(num_columns)])
    expected = np.stack([x.max(axis=1), x.min(axis=1)], axis=1)  # [R, 2]
    np.testing.assert_array_equal(device.memory.download(out), np.broadcast_to(expected[:, None], out.shape))


def run_transpose(device: Gpu, source: str = "", num_rows: int = 150, num_columns: int = 70) -> None:
    function = device.compile(Path(source or KERNELS / "transpose.cu")).function("transpose")
    x = np.random.default_rng(0).standard_normal((num_rows, num_columns)).astype(np.float32)
    out = device.memory.alloc((num_columns, num_rows), np.float32)
    grid = (-(-num_columns // 32), 1, 1)
    device.launch(function, grid, (32, 8, 1), [out, upload(device, x), np.int32(num_rows), np.int32(num_columns)])
    np.testing.assert_array_equal(device.memory.download(out), x.T)


def run_gemm(
    device: Gpu, source: str = "", size_m: int = 11, size_n: int = 128, size_k: int = 448, seed: int = 0
) -> None:
    function = device.compile(Path(source or KERNELS / "gemm.cu")).function("gemm_small")
    x, w = bf16_normal(seed, (size_m, size_k)), bf16_normal(seed + 1, (size_n, size_k))
    out = device.memory.alloc((size_m, size_n), np.float32)
    sizes = [np.int32(size_m), np.int32(size_n), np.int32(size_k)]
    arguments: list[Argument] = [out, upload(device, x), upload(device, w), *sizes]
    grid = (size_n // 64, -(-size_m // 8), 1)
    device.launch(function, grid, (128, 1, 1), arguments, shared_bytes=3 * (64 + 8) * (64 + 8) * 2)
    exact_x, exact_w = x.astype(np.float64), w.astype(np.float64)
    bound = size_k * 2.0**-24 * (np.abs(exact_x) @ np.abs(exact_w).T)  # a rounding for each addition
    assert (np.abs(device.memory.download(out) - exact_x @ exact_w.T) <= bound).all()


def run_scan(device: Gpu, source: str = "", num_rows: int = 3, num_columns: int = 1000) -> None:
    function = device.compile(Path(source or KERNELS / "scan.cu")).function("scan_rows")
    x = np.random.default_rng(0).integers(-99, 99, (num_rows, num_columns)).astype(np.int32)
    out = device.memory.alloc(x.shape, np.int32)
    device.launch(function, (num_rows, 1, 1), (256, 1, 1), [out, upload(device, x), np.int32(num_columns)])
    np.testing.assert_array_equal(device.memory.download(out), x.cumsum(axis=1))


def run_grid_sum(device: Gpu, source: str = "", num_blocks: int = 6, size: int = 2000, repeats: int = 2) -> None:
    function = device.compile(Path(source or KERNELS / "grid_sum.cu")).function("divide_by_sum")
    x = np.random.default_rng(0).random(size).astype(np.float32)
    out, partial = device.memory.alloc((size,), np.float32), device.memory.alloc((num_blocks,), np.float32)
    state = upload(device, np.zeros(1, np.uint32))
    arguments: list[Argument] = [out, partial, state, upload(device, x), np.int32(size)]
    for _ in range(repeats):
        device.memory.fill(partial, 0xFF)
        device.launch(function, (num_blocks, 1, 1), (128, 1, 1), arguments, cooperative=True)
        np.testing.assert_allclose(device.memory.download(out), x / x.sum(dtype=np.float64), rtol=size * 2.0**-24)


def run_last_block(device: Gpu, source: str = "", num_blocks: int = 9, size: int = 2000) -> None:
    function = device.compile(Path(source or KERNELS / "grid_sum.cu")).function("sum_by_last_block")
    x = np.random.default_rng(0).random(size).astype(np.float32)
    out, partial = device.memory.alloc((1,), np.float32), device.memory.alloc((num_blocks,), np.float32)
    counter = upload(device, np.zeros(1, np.uint32))
    for _ in range(2):
        arguments: list[Argument] = [out, partial, counter, upload(device, x), np.int32(size)]
        device.launch(function, (num_blocks, 1, 1), (128, 1, 1), arguments)
        np.testing.assert_allclose(device.memory.download(out), [x.sum(dtype=np.float64)], rtol=size * 2.0**-24)
        assert device.memory.download(counter)[0] == 0


def run_dependent(device: Gpu, source: str = "", size: int = 1000, num_pairs: int = 2) -> None:
    module = device.compile(Path(source or KERNELS / "dependent.cu"))
    produce, consume = module.function("produce"), module.function("consume")
    rng = np.random.default_rng(0)
    w, expected = rng.random(size).astype(np.float32), rng.random(size).astype(np.float32)
    z, w_buffer = upload(device, expected), upload(device, w)
    y = device.memory.alloc((size,), np.float32)
    grid, block = (-(-size // 128), 1, 1), (128, 1, 1)
    with device.capture() as graph:
        for _ in range(num_pairs):
            device.launch(produce, grid, block, [y, z, np.float32(2.0), np.int32(size)], pdl=True)
            device.launch(consume, grid, block, [z, y, w_buffer, np.int32(size)], pdl=True)
    for _ in range(2):
        graph.replay()
        for _ in range(num_pairs):
            expected = np.float32(2.0) * expected + w
    np.testing.assert_array_equal(device.memory.download(z), expected)


Sample: TypeAlias = Callable[..., None]

ALL: dict[str, Sample] = {
    "moments": run_moments,
    "maxima": run_maxima,
    "transpose": run_transpose,
    "gemm": run_gemm,
    "scan": run_scan,
    "grid_sum": run_grid_sum,
    "last_block": run_last_block,
    "dependent": run_dependent,
}
