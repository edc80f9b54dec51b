"""Whole kernels against NumPy: any shape, any order of threads, either architecture, one or several OS threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.emulator import samples
from tinyvllm.devices.emulator import EmulatorDevice

sizes = st.integers(1, 300)


@settings(deadline=None, max_examples=15)
@given(num_rows=st.integers(1, 5), num_columns=sizes)
def test_moments_of_any_shape(device: EmulatorDevice, num_rows: int, num_columns: int) -> None:
    samples.run_moments(device, num_rows=num_rows, num_columns=num_columns)


@settings(deadline=None, max_examples=15)
@given(num_rows=sizes, num_columns=st.integers(1, 100))
def test_transpose_of_any_shape(device: EmulatorDevice, num_rows: int, num_columns: int) -> None:
    samples.run_transpose(device, num_rows=num_rows, num_columns=num_columns)


@settings(deadline=None, max_examples=15)
@given(size_m=st.integers(1, 20), blocks_n=st.integers(1, 3), steps=st.integers(1, 6))
def test_gemm_of_any_shape(device: EmulatorDevice, size_m: int, blocks_n: int, steps: int) -> None:
    samples.run_gemm(device, size_m=size_m, size_n=64 * blocks_n, size_k=64 * steps)


@settings(deadline=None, max_examples=15)
@given(num_columns=st.integers(1, 1200))
def test_scan_of_any_length(device: EmulatorDevice, num_columns: int) -> None:
    samples.run_scan(device, num_columns=num_columns)


@settings(deadline=None, max_examples=10)
@given(num_blocks=st.integers(1, 8), size=st.integers(1, 3000))
def test_grid_barrier_over_any_grid(device: EmulatorDevice, num_blocks: int, size: int) -> None:
    samples.run_grid_sum(device, num_blocks=num_blocks, size=size)


@settings(deadline=None, max_examples=10)
@given(num_blocks=st.integers(1, 20))
def test_last_block_sees_what_all_others_wrote(device: EmulatorDevice, num_blocks: int) -> None:
    samples.run_last_block(device, num_blocks=num_blocks)


@settings(deadline=None, max_examples=10)
@given(size=st.integers(1, 2000), num_pairs=st.integers(1, 3))
def test_dependent_launches_in_a_graph(device: EmulatorDevice, size: int, num_pairs: int) -> None:
    samples.run_dependent(device, size=size, num_pairs=num_pairs)


@pytest.mark.parametrize("name", samples.ALL)
@pytest.mark.parametrize("arch", [80, 90])
def test_every_order_of_threads_gives_the_same(cache_dir: Path, name: str, arch: int) -> None:
    device = EmulatorDevice(arch=arch, seed=1000, cache_dir=cache_dir)
    for _ in range(5):  # each launch takes the next seed
        samples.ALL[name](device)


@pytest.mark.parametrize("name", samples.ALL)
def test_blocks_on_several_os_threads(cache_dir: Path, name: str) -> None:
    device = EmulatorDevice(num_workers=3, cache_dir=cache_dir)
    for _ in range(3):
        samples.ALL[name](device)


@pytest.mark.slow
@pytest.mark.parametrize("name", samples.ALL)
def test_portable_context_switch(cache_dir: Path, name: str) -> None:
    samples.ALL[name](EmulatorDevice(runtime_flags=("-DTINYVLLM_UCONTEXT",), cache_dir=cache_dir))


def test_every_warp_comes_first_in_some_order(cache_dir: Path, tmp_path: Path) -> None:
    """Also where there are few: an order that nearly always rises would hide missing barriers."""
    source = tmp_path / "first.cu"
    source.write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void first(int* out, int* next) {\n'
        "    __syncwarp();\n"
        "    if (lane_id() == 0) out[atomicAdd(next, 1)] = warp_id();\n"
        "}\n"
    )
    first, last = set(), set()
    for seed in range(60):
        device = EmulatorDevice(seed=seed, cache_dir=cache_dir)
        out, counter = device.memory.alloc((4,), np.int32), samples.upload(device, np.zeros(1, np.int32))
        device.launch(device.compile(source).function("first"), (1, 1, 1), (128, 1, 1), [out, counter])
        order = device.memory.download(out).tolist()
        first.add(order[0])
        last.add(order[3])
    assert first == last == {0, 1, 2, 3}


def test_one_seed_gives_one_order(cache_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "order.cu"
    source.write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void order(int* out, int* next) {\n'
        "    out[atomicAdd(next, 1)] = blockIdx.x * 1000 + threadIdx.x;\n"
        "}\n"
    )

    def arrivals(seed: int) -> list[int]:
        device = EmulatorDevice(seed=seed, cache_dir=cache_dir)
        out, counter = device.memory.alloc((4, 64), np.int32), samples.upload(device, np.zeros(1, np.int32))
        device.launch(device.compile(source).function("order"), (4, 1, 1), (64, 1, 1), [out, counter])
        return [int(i) for i in device.memory.download(out).ravel()]

    assert arrivals(5) == arrivals(5)
    assert arrivals(5) != arrivals(6)
    assert arrivals(5) != sorted(arrivals(5))
    assert sorted(arrivals(5)) == sorted(arrivals(6))
