"""Each primitive against its definition in NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.emulator.samples import KERNELS, upload
from tinyvllm.device import Array
from tinyvllm.devices.emulator import EmulatorDevice
from tinyvllm.devices.emulator.device import EmulatorModule


@pytest.fixture(scope="module")
def module(device: EmulatorDevice) -> EmulatorModule:
    return device.compile(KERNELS / "primitives.cu")


def test_every_bf16_and_f16_converts_exactly_and_back(device: EmulatorDevice, module: EmulatorModule) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    out = [device.memory.alloc((65536,), kind) for kind in (np.float32, np.float32, np.uint16, np.uint16)]
    device.launch(module.function("convert_all"), (256, 1, 1), (256, 1, 1), out)
    from_bf16, from_f16, back_bf16, back_f16 = (device.memory.download(buffer) for buffer in out)
    np.testing.assert_array_equal(from_bf16, bits.view(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(from_f16, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(back_bf16[~np.isnan(from_bf16)], bits[~np.isnan(from_bf16)])
    np.testing.assert_array_equal(back_f16[~np.isnan(from_f16)], bits[~np.isnan(from_f16)])
    assert set(back_bf16[np.isnan(from_bf16)]) == {0x7FFF}
    assert set(back_f16[np.isnan(from_f16)]) == {0x7FFF}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=200))
def test_rounding_is_to_nearest_even(device: EmulatorDevice, module: EmulatorModule, values: list[float]) -> None:
    x = np.array(values, np.float32)
    # Halfway cases are what rounding is about: the midpoints above each value in both formats, and their neighbours.
    bits = x.view(np.uint32)
    middle = np.concatenate([bits & 0xFFFF0000 | 0x8000, bits & 0xFFFFE000 | 0x1000, [0]]).astype(np.uint32)
    x = np.concatenate([bits, middle, middle - np.uint32(1), middle + np.uint32(1)]).view(np.float32)
    x = x[np.isfinite(x)]
    kinds = (ml_dtypes.bfloat16, np.uint32, np.float16)
    out = [device.memory.alloc(x.shape, kind) for kind in kinds]
    function = module.function("round_all")
    device.launch(function, (-(-x.size // 64), 1, 1), (64, 1, 1), [*out, upload(device, x), np.int32(x.size)])
    rounded, packed, half = (device.memory.download(buffer) for buffer in out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded.view(np.uint16), x.astype(ml_dtypes.bfloat16).view(np.uint16))
        np.testing.assert_array_equal(half.view(np.uint16), x.astype(np.float16).view(np.uint16))
    low, high = packed.astype(np.uint16), (packed >> 16).astype(np.uint16)
    np.testing.assert_array_equal(low, rounded.view(np.uint16))
    np.testing.assert_array_equal(high, (-x).astype(ml_dtypes.bfloat16).view(np.uint16))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-100, 100), min_size=32, max_size=32))
def test_warp_functions(device: EmulatorDevice, module: EmulatorModule, values: list[int]) -> None:
    x, lane = np.array(values, np.int32), np.arange(32)
    out = device.memory.alloc((10, 32), np.int32)
    device.launch(module.function("warp_functions"), (1, 1, 1), (32, 1, 1), [out, upload(device, x)])
    ballot = np.uint32(sum(1 << i for i in range(32) if x[i] > 0))
    expected = [
        x[lane * 7 % 32],
        x[np.where(lane < 3, lane, lane - 3)],
        x[np.where(lane % 16 + 5 < 16, lane + 5, lane)],
        x[lane ^ 9],
        np.full(32, ballot.view(np.int32)),
        np.ones(32),
        np.full(32, (x == x[31]).all()),
        x.reshape(4, 8).max(axis=1).repeat(8),
        x.cumsum(),
        np.where(lane < 16, x[3], x[30]),
    ]
    np.testing.assert_array_equal(device.memory.download(out), np.stack(expected).astype(np.int32))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-1000, 1000), min_size=128, max_size=128))
def test_atomics_and_votes(device: EmulatorDevice, module: EmulatorModule, values: list[int]) -> None:
    x = np.array(values, np.int32)
    totals, total = upload(device, np.zeros(5, np.int32)), upload(device, np.zeros(1, np.float32))
    ticket, out = upload(device, np.zeros(1, np.uint32)), device.memory.alloc((128, 4), np.int32)
    arguments = [totals, total, ticket, out, upload(device, x)]
    device.launch(module.function("atomics"), (2, 1, 1), (64, 1, 1), arguments)
    expected = [
        x.sum(),
        max(0, x.max()),
        min(0, x.min()),
        np.bitwise_or.reduce(1 << (x & 31)),
        np.bitwise_xor.reduce(x),
    ]
    np.testing.assert_array_equal(device.memory.download(totals), np.array(expected).astype(np.int32))
    assert device.memory.download(total)[0] == 128
    assert device.memory.download(ticket)[0] == 28  # 128 tickets of 100 numbers
    halves = x.reshape(2, 64)
    votes = (halves == 7).any(axis=1) + 2 * (halves < 1000).all(axis=1) + 4 * (halves > 0).sum(axis=1)
    found, bits = device.memory.download(out), x.view(np.uint32)
    np.testing.assert_array_equal(found[:, 0], votes.repeat(64))
    text = [f"{int(i):032b}" for i in bits]
    first = [32 - t.rindex("1") if "1" in t else 0 for t in text]
    leading = [t.index("1") if "1" in t else 32 for t in text]
    counts = [t.count("1") + 100 * f + 10000 * z for t, f, z in zip(text, first, leading, strict=True)]
    np.testing.assert_array_equal(found[:, 1], counts)
    product = (bits * np.uint32(0x9E3779B9)).astype(np.uint64) * 0xDEADBEEF >> 32
    np.testing.assert_array_equal(found[:, 2].view(np.uint32), product.astype(np.uint32))
    np.testing.assert_array_equal(found[:, 3].view(np.uint32), [int(t[::-1], 2) for t in text])


def fragments(tiles: Array) -> Array:
    """Row l of the result: what lane l holds of each 8 x 8 tile, as 32-bit registers ``[tiles, 32]``."""
    return np.ascontiguousarray(tiles).reshape(len(tiles), 32, 2).view(np.uint32).reshape(len(tiles), 32)


def test_ldmatrix_and_mma_as_the_instruction_set_defines_them(device: EmulatorDevice, module: EmulatorModule) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 65536, (32, 8)).astype(np.uint16)
    a, b = (rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in ((16, 16), (16, 8)))
    out, product = device.memory.alloc((14, 32), np.uint32), device.memory.alloc((16, 8), np.float32)
    arguments = [out, product, upload(device, x), upload(device, a), upload(device, b)]
    device.launch(module.function("matrices"), (1, 1, 1), (32, 1, 1), arguments)
    tiles = x.reshape(4, 8, 8)
    plain, transposed = fragments(tiles), fragments(tiles.transpose(0, 2, 1))
    expected = np.concatenate([plain[:1], plain[:2], plain, transposed[:1], transposed[:2], transposed])
    np.testing.assert_array_equal(device.memory.download(out), expected)
    start = np.where(np.arange(16)[:, None] < 8, 1.0, 3.0) + np.arange(8) % 2  # d[] began as 1, 2, 3, 4
    exact = start + a.astype(np.float64) @ b.astype(np.float64)
    bound = 17 * 2.0**-24 * (start + np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)))
    assert (np.abs(device.memory.download(product) - exact) <= bound).all()
