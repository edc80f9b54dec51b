"""Products on a card: their definition, in graphs, tuned, and batch-invariant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyvllm.device import Array
from tinyvllm.devices.cuda import CudaDevice

from .support import BF16, BF16_ROUNDOFF, F32_ROUNDOFF, assert_within, normal, put, sum_error

GEMM_SHAPES = [(1, 64, 64), (8, 2048, 2048), (32, 3072, 2048), (33, 200, 328), (128, 2048, 8192), (257, 1024, 512)]


def reference(x: Array, weight: Array, out: Array | None, dtype: Any) -> tuple[Array, Array]:
    """The product in float64, plus ``out``, and how far the card may be off: a float32 sum rounded to ``dtype``.

    With ``out`` it may round twice, the product before it is added: what two operations in ``dtype`` would do.
    """
    wide, weights = x.astype(np.float64), weight.astype(np.float64)
    product, magnitude = wide @ weights.T, np.abs(wide) @ np.abs(weights).T
    roundoff = BF16_ROUNDOFF if dtype == BF16 else F32_ROUNDOFF
    error = sum_error(magnitude, x.shape[1])
    if out is None:
        expected = product
    else:
        expected = product + out
        error = error * (1 + roundoff) + roundoff * np.abs(product)
    return expected, error * (1 + roundoff) + roundoff * np.abs(expected)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("shape", GEMM_SHAPES, ids=str)
def test_a_product_is_its_definition(cuda: CudaDevice, shape: Any, dtype: Any, accumulate: bool) -> None:
    size_m, size_n, size_k = shape
    x, weight = normal(9, size_m, size_k, dtype=dtype), normal(10, size_n, size_k, dtype=dtype)
    before = normal(11, size_m, size_n, dtype=dtype)
    out = put(cuda, before) if accumulate else cuda.memory.alloc(before.shape, dtype)
    cuda.gemm(out, put(cuda, x), put(cuda, weight), accumulate=accumulate)
    assert_within(cuda.memory.download(out), *reference(x, weight, before if accumulate else None, dtype))


def test_a_product_of_no_rows_is_nothing(cuda: CudaDevice) -> None:
    empty = cuda.memory.alloc((0, 64), BF16)
    cuda.gemm(cuda.memory.alloc((0, 8), BF16), empty, put(cuda, normal(0, 8, 64, dtype=BF16)))
    cuda.synchronize()


def test_a_product_at_an_odd_address_is_its_definition(cuda: CudaDevice) -> None:
    x, weight = normal(12, 4, 64, dtype=BF16), normal(13, 32, 64, dtype=BF16)
    room = put(cuda, np.concatenate([normal(0, 1, dtype=BF16), x.reshape(-1)]))
    out = cuda.memory.alloc((4, 32), BF16)
    cuda.gemm(out, room.view(x.shape, offset_bytes=2), put(cuda, weight))
    assert_within(cuda.memory.download(out), *reference(x, weight, None, BF16))


def test_a_product_first_used_in_a_capture_is_recorded_and_replayed(cuda: CudaDevice) -> None:
    x, weight = normal(14, 24, 704, dtype=BF16), normal(15, 1408, 704, dtype=BF16)
    out, at, weights = cuda.memory.alloc((24, 1408), BF16), put(cuda, x), put(cuda, weight)
    with cuda.capture() as graph:
        cuda.gemm(out, at, weights)
        cuda.gemm(out, at, weights, accumulate=True)
    assert np.isnan(cuda.memory.download(out).astype(np.float32)).all()
    for _ in range(2):
        graph.replay()
        expected, allowed = reference(x, weight, None, BF16)
        assert_within(cuda.memory.download(out), 2 * expected, 3 * allowed)


def test_a_tuned_choice_is_correct_and_survives_a_restart(cuda: CudaDevice, cache_dir: Path) -> None:
    x, weight = normal(16, 32, 2048, dtype=BF16), normal(17, 3072, 2048, dtype=BF16)
    out, at, weights = cuda.memory.alloc((32, 3072), BF16), put(cuda, x), put(cuda, weight)
    timing = cuda.tune_gemm(out, at, weights)
    assert timing.microseconds <= timing.untuned_microseconds
    cuda.gemm(out, at, weights)
    first = cuda.memory.download(out)
    assert_within(first, *reference(x, weight, None, BF16))
    again = CudaDevice(cache_dir=cache_dir)
    out = again.memory.alloc((32, 3072), BF16)
    again.gemm(out, put(again, x), put(again, weight))
    np.testing.assert_array_equal(again.memory.download(out), first)


def test_with_batch_invariance_a_row_has_the_same_bits_in_any_company(cuda: CudaDevice, cache_dir: Path) -> None:
    invariant = CudaDevice(cache_dir=cache_dir, batch_invariant=True)
    for size_n, size_k in ((3072, 2048), (2048, 8192)):
        x, weight = normal(18, 600, size_k, dtype=BF16), put(invariant, normal(19, size_n, size_k, dtype=BF16))
        rows = {}
        for size_m in (600, 1, 7, 64, 128, 255):
            out = invariant.memory.alloc((size_m, size_n), BF16)
            first = 600 - size_m  # at another place in the tiles each time
            invariant.gemm(out, put(invariant, x[first:]), weight)
            rows[size_m] = invariant.memory.download(out)
            np.testing.assert_array_equal(rows[size_m].view(np.uint16), rows[600][first:].view(np.uint16))
