"""Programmatic dependent launch, graphs, and the order of a stream."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.emulator import samples
from tests.emulator.samples import KERNELS, upload
from tinyvllm.devices.emulator import EmulatorDevice
from tinyvllm.errors import KernelError

SIZE = 300
GRID, BLOCK = (3, 1, 1), (128, 1, 1)


def write_mutant(folder: Path, old: str, new: str) -> str:
    text = (KERNELS / "dependent.cu").read_text()
    assert old in text
    path = folder / "dependent.cu"
    path.write_text(text.replace(old, new))
    return str(path)


def test_a_read_before_the_wait_sees_nan(device: EmulatorDevice, tmp_path: Path) -> None:
    source = write_mutant(tmp_path, "const float mine = i < size ? w[i]", "const float mine = i < size ? w[i] + y[i]")
    with pytest.raises(AssertionError):
        samples.run_dependent(device, source)


def test_a_missing_wait_sees_nan(device: EmulatorDevice, tmp_path: Path) -> None:
    source = write_mutant(tmp_path, "pdl_wait();  // y is complete before it is read", "")
    with pytest.raises(AssertionError):
        samples.run_dependent(device, source)


def test_before_sm_90_the_attribute_means_nothing(cache_dir: Path, tmp_path: Path) -> None:
    source = write_mutant(tmp_path, "pdl_wait();  // y is complete before it is read", "")
    samples.run_dependent(EmulatorDevice(arch=80, cache_dir=cache_dir), source)


def test_a_write_before_the_wait_is_refused(device: EmulatorDevice, tmp_path: Path) -> None:
    source = tmp_path / "early.cu"
    source.write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void first(float* y) { y[threadIdx.x] = 1.0f; }\n'
        'extern "C" __global__ void second(float* y) { y[threadIdx.x] = 2.0f; pdl_wait(); }\n'
    )
    module = device.compile(source)
    y = device.memory.alloc((32,), np.float32)
    device.launch(module.function("first"), (1, 1, 1), (32, 1, 1), [y])
    device.launch(module.function("second"), (1, 1, 1), (32, 1, 1), [y], pdl=True)
    with pytest.raises(KernelError, match="second writes what its predecessor first writes before its pdl_wait"):
        device.synchronize()


def test_blocks_that_spin_for_a_lane_at_its_wait_do_not_wake_each_other_for_ever(
    device: EmulatorDevice, tmp_path: Path
) -> None:
    """One lane of each block waits for the predecessor, 255 look for what it will say; each counts its looks."""
    source = tmp_path / "spinning.cu"
    source.write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void first(float* y) { y[0] = 1.0f; }\n'
        'extern "C" __global__ void second(int* looks) {\n'
        "    __shared__ uint32_t is_open;\n"
        "    if (threadIdx.x == 0) is_open = 0;\n"
        "    __syncthreads();\n"
        "    int count = 0;\n"
        "    if (threadIdx.x == 0) { pdl_wait(); atomicAdd(&is_open, 1u); }\n"
        "    else while (load_relaxed(&is_open) == 0 && ++count < 10000) spin_pause();\n"
        "    looks[blockIdx.x * blockDim.x + threadIdx.x] = count;\n"
        "}\n"
    )
    module, grid, block = device.compile(source), (20, 1, 1), (256, 1, 1)
    y, looks = device.memory.alloc((1,), np.float32), device.memory.alloc((20 * 256,), np.int32)
    device.launch(module.function("first"), (1, 1, 1), (1, 1, 1), [y])
    device.launch(module.function("second"), grid, block, [looks], pdl=True)
    assert device.memory.download(looks).max() < 100


def test_an_early_start_goes_as_deep_as_the_launches_allow(device: EmulatorDevice, tmp_path: Path) -> None:
    """The middle kernel lets its successor go before its own wait, so the third may start before the first."""
    source = tmp_path / "deep.cu"
    source.write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void first(float* y) { y[0] = 1.0f; }\n'
        'extern "C" __global__ void middle(float* z) { EARLY pdl_wait(); LATE z[0] = 1.0f; }\n'
        'extern "C" __global__ void third(float* out, const float* y) {\n'
        "    const float v = y[0]; pdl_wait(); out[0] = v; }\n"
    )
    found = []
    for early, late in (("pdl_launch_dependents();", ""), ("", "pdl_launch_dependents();")):
        module = device.compile(source, {"EARLY": early, "LATE": late})
        y, z, out = (device.memory.alloc((1,), np.float32) for _ in range(3))
        device.launch(module.function("first"), (1, 1, 1), (1, 1, 1), [y])
        device.launch(module.function("middle"), (1, 1, 1), (1, 1, 1), [z], pdl=True)
        device.launch(module.function("third"), (1, 1, 1), (1, 1, 1), [out, y], pdl=True)
        found.append(float(device.memory.download(out)[0]))
    assert np.isnan(found[0])
    assert found[1] == 1.0


def test_a_gemm_is_a_predecessor_too(device: EmulatorDevice, tmp_path: Path) -> None:
    source = write_mutant(tmp_path, "pdl_wait();  // y is complete before it is read", "")
    results = []
    for path in (source, str(KERNELS / "dependent.cu")):
        rng = np.random.default_rng(0)
        x, weight = rng.random((1, 8)).astype(np.float32), rng.random((SIZE, 8)).astype(np.float32)
        y, z = device.memory.alloc((1, SIZE), np.float32), device.memory.alloc((SIZE,), np.float32)
        zeros = upload(device, np.zeros(SIZE, np.float32))
        device.gemm(y, upload(device, x), upload(device, weight))
        consume = device.compile(Path(path)).function("consume")
        device.launch(consume, GRID, BLOCK, [z, y, zeros, np.int32(SIZE)], pdl=True)
        results.append(device.memory.download(z))
    assert np.isnan(results[0]).all()
    np.testing.assert_allclose(results[1], (x @ weight.T)[0], rtol=8 * 2.0**-23)


def test_outputs_that_are_also_inputs_survive_the_poison(device: EmulatorDevice, tmp_path: Path) -> None:
    source = tmp_path / "in_place.cu"
    source.write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void increment(float* y) { pdl_wait(); y[threadIdx.x] += 1.0f; }\n'
    )
    function = device.compile(source).function("increment")
    y = upload(device, np.arange(32, dtype=np.float32))
    for _ in range(7):
        device.launch(function, (1, 1, 1), (32, 1, 1), [y], pdl=True)
    np.testing.assert_array_equal(device.memory.download(y), np.arange(32) + 7)


def test_a_graph_records_fills_gemms_and_launches_and_runs_none(device: EmulatorDevice) -> None:
    x = upload(device, np.ones((2, 4), ml_dtypes.bfloat16))
    out = upload(device, np.full((2, 2), 5, ml_dtypes.bfloat16))
    weight = upload(device, np.ones((2, 4), ml_dtypes.bfloat16))
    with device.capture() as graph:
        device.gemm(out, x, weight, accumulate=True)
        device.memory.fill(x, 0)
    assert (device.memory.download(out) == 5).all()
    graph.replay()
    graph.replay()
    assert (device.memory.download(out) == 9).all()  # 5 + 4, then 0: x was cleared in between


def test_a_download_shows_its_place_in_the_stream(device: EmulatorDevice) -> None:
    buffer = upload(device, np.array([1, 2], np.int32))
    early = device.memory.start_download(buffer)
    device.memory.fill(buffer, 0)
    late = device.memory.start_download(buffer)
    assert early.wait().tolist() == [1, 2]
    assert late.wait().tolist() == [0, 0]


def test_views_share_memory_and_stay_within_it(device: EmulatorDevice) -> None:
    buffer = upload(device, np.arange(12, dtype=np.int32))
    assert device.memory.download(buffer.view((2, 3), offset_bytes=4)).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert device.memory.download(buffer.view((4,), np.uint16)).tolist() == [0, 0, 1, 0]
    for shape, offset in (((13,), 0), ((12,), 4), ((1,), -4)):
        with pytest.raises(KernelError, match="ends beyond"):
            buffer.view(shape, offset_bytes=offset)


def test_what_follows_a_failure_in_the_stream_is_dropped(device: EmulatorDevice, tmp_path: Path) -> None:
    source = tmp_path / "fails.cu"
    source.write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void fails(int* y) { pdl_wait(); device_assert(y[0] == 0); y[0] = 1; }\n'
    )
    function, y = device.compile(source).function("fails"), upload(device, np.zeros(1, np.int32))
    for _ in range(3):
        device.launch(function, (1, 1, 1), (32, 1, 1), [y], pdl=True)
    with pytest.raises(KernelError, match="device_assert"):
        device.synchronize()
    device.synchronize()
    assert device.memory.download(y)[0] == 1
