"""What Hopper alone has, its copy engine and products of a warpgroup, against NumPy; and every mistake shows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.emulator.samples import KERNELS, upload
from tinyvllm.device import Array
from tinyvllm.devices.emulator import EmulatorDevice
from tinyvllm.errors import KernelError

BF16 = np.dtype(ml_dtypes.bfloat16)
SOURCE = KERNELS / "hopper.cu"
BOX_BYTES = 33 * 1024


@pytest.fixture(autouse=True)
def needs_hopper(device: EmulatorDevice) -> None:
    if device.properties.arch != 90:
        pytest.skip(f"{device.properties.name} is no Hopper")


# What each mistake of the kernel leads to: a message, or NaN.
MISTAKES = {
    "not_set_up": "mbarrier_init has not set up",
    "not_landed": "boxes are still to land",
    "not_fenced": None,
    "not_waited": "other than",
    "overwritten": None,
    "part_of_a_warp": "wgmma needs all 32 lanes of the warp, 31 are there",
    "left_behind": "boxes are still to land",
    "misaligned": "not a multiple of 1024",
}


def multiply(device: EmulatorDevice, a: Array, b: Array, **defines: int) -> Array:
    """``a @ b.T`` by the kernel."""
    num_columns = b.shape[0]
    shared_bytes = 1024 + 2 * 128 * (64 + num_columns)
    module = device.compile(SOURCE, {"NUM_COLUMNS": num_columns, **defines})
    function = module.function("product", max_dynamic_shared_bytes=shared_bytes)
    maps = [device.tensor_map(upload(device, each), each.shape[0]) for each in (a, b)]
    out = device.memory.alloc((64, num_columns), np.float32)
    device.launch(function, (1, 1, 1), (160, 1, 1), (out, *maps), shared_bytes=shared_bytes)
    return device.memory.download(out)


@pytest.mark.parametrize("num_columns", [64, 128, 256])
def test_a_product_of_a_warpgroup(device: EmulatorDevice, num_columns: int) -> None:
    rng = np.random.default_rng(num_columns)
    a, b = (rng.integers(-8, 9, (rows, 128)).astype(BF16) for rows in (64, num_columns))  # sums are exact
    expected = a.astype(np.float32) @ b.astype(np.float32).T
    np.testing.assert_array_equal(multiply(device, a, b), expected)


@settings(deadline=None, max_examples=30)
@given(
    num_runs=st.integers(1, 20),
    num_vectors=st.integers(1, 20),
    box_runs=st.integers(1, 16),
    first_run=st.integers(0, 20),
    first_vector=st.integers(0, 20),
    paired=st.booleans(),
)
def test_a_box_lies_swizzled_and_is_zero_beyond_the_matrix(
    device: EmulatorDevice,
    num_runs: int,
    num_vectors: int,
    box_runs: int,
    first_run: int,
    first_vector: int,
    paired: bool,
) -> None:
    rows, columns, box_rows = num_runs * 16, num_vectors * 8, box_runs * 16
    matrix = np.random.default_rng(rows).integers(1, 2**15, (rows, columns)).astype(np.uint16)
    map_ = device.tensor_map(upload(device, matrix.view(BF16)), box_rows, paired=paired)
    out = device.memory.alloc((box_rows, 8, 8), np.uint16)
    function = device.compile(SOURCE).function("box", max_dynamic_shared_bytes=BOX_BYTES)
    row = first_run if paired else first_run * 3
    sizes = (np.int32(row), np.int32(first_vector * 8), np.int32(paired), np.int32(box_rows * 8))
    device.launch(function, (1, 1, 1), (64, 1, 1), (out, map_, *sizes), shared_bytes=BOX_BYTES)

    if paired:  # eight rows of one half, then eight of the other
        matrix = matrix.reshape(2, num_runs, 8, columns).swapaxes(0, 1).reshape(rows, columns)
        row *= 16
    wide = np.zeros((rows + row + box_rows, columns + first_vector * 8 + 64), np.uint16)
    wide[:rows, :columns] = matrix
    expected = wide[row : row + box_rows, first_vector * 8 : first_vector * 8 + 64].reshape(box_rows, 8, 8)
    lanes = np.arange(8) ^ (np.arange(box_rows) % 8)[:, None]
    got = device.memory.download(out)
    np.testing.assert_array_equal(np.take_along_axis(got, lanes[:, :, None], axis=1), expected)


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items())
def test_a_mistake_shows(mistake: str, message: str | None) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(1, 9, (64, 128)).astype(BF16) for _ in range(2))
    expected = a.astype(np.float32) @ b.astype(np.float32).T
    defines: dict[str, Any] = {"MISTAKE": mistake}
    device = EmulatorDevice()
    if message is None:
        assert np.isnan(multiply(device, a, b, **defines)).any()
    elif message == "other than":
        assert (multiply(device, a, b, **defines) != expected).all()
    else:
        with pytest.raises(KernelError, match=message):
            multiply(device, a, b, **defines)
