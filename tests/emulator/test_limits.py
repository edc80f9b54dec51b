"""A launch that a GPU would refuse is refused, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.emulator.samples import KERNELS
from tinyvllm.device import Argument
from tinyvllm.devices.emulator import EmulatorDevice, Sanitizer
from tinyvllm.devices.emulator.task import EmulatorFunction
from tinyvllm.errors import DeviceError, KernelError


@pytest.fixture(scope="module")
def transpose(device: EmulatorDevice) -> EmulatorFunction:
    return device.compile(KERNELS / "transpose.cu").function("transpose")


GOOD: dict[str, Any] = {"grid": (1, 1, 1), "block": (32, 8, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (1, 65536, 1)}, "grid.y is 65536, a grid has 1 to 65535"),
        ({"grid": (0, 1, 1)}, "grid.x is 0"),
        ({"grid": (2**31, 1, 1)}, "grid.x is 2147483648"),
        ({"block": (1, 1, 65)}, "block.z is 65, a block has 1 to 64"),
        ({"block": (32, 16, 1)}, "512 threads in a block, __launch_bounds__ allows 256"),
        ({"shared_bytes": 49153}, "49153 bytes of dynamic shared memory, the function may use 49152"),
        ({"grid": (3, 1, 1), "cluster": (2, 1, 1)}, r"grid \(3, 1, 1\) is not a whole number of clusters"),
        ({"grid": (16, 1, 1), "cluster": (16, 1, 1)}, "a cluster has 1 to 8 blocks"),
        ({"grid": (33, 1, 1), "cooperative": True}, "33 blocks, but only 32 are resident together .8 on each of 4 SMs"),
        (
            {"grid": (21, 1, 1), "cooperative": True, "shared_bytes": 45000},
            "21 blocks, but only 20 are resident together",
        ),
    ],
)
def test_limits(device: EmulatorDevice, transpose: EmulatorFunction, change: dict[str, Any], message: str) -> None:
    out = device.memory.alloc((4,), np.float32)
    arguments: list[Argument] = [out, out, np.int32(0), np.int32(0)]
    shape = {**GOOD, **change}
    grid, block = shape.pop("grid"), shape.pop("block")
    with pytest.raises(KernelError, match=f"kernel transpose: .*{message}"):
        device.launch(transpose, grid, block, arguments, **shape)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, np.int32(0)), "3 arguments, the kernel has 4 parameters"),
        ((None, np.int64(0), np.int32(0), np.int32(0)), "argument 1 is int64 of 8 bytes, .* a buffer"),
        ((None, None, np.int64(0), np.int32(0)), "argument 2 is int64 of 8 bytes, .* a value of 4 bytes"),
        ((None, None, None, np.int32(0)), "argument 2 is a buffer, .* a value of 4 bytes"),
        (
            (None, None, np.float32(1), np.int32(0)),
            r"argument 2 is float32 .* 4 bytes \(integer\)",
        ),
        (
            (None, None, np.int32(0), np.float32(8)),
            r"argument 3 is float32 .* 4 bytes \(integer\)",
        ),
    ],
)
def test_arguments_must_fit_the_signature(
    device: EmulatorDevice, transpose: EmulatorFunction, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        device.launch(transpose, (1, 1, 1), (32, 8, 1), arguments)


TYPES = """#include "tinyvllm/prelude.cuh"
struct Pair { int a; float b; };
extern "C" __global__ void types(float f, unsigned u, bool b, Pair pair, bf16 h, float* floats, const int* ints,
                                 const bf16* halves, const void* any, const unsigned char* bytes) {}
"""


def test_every_type_of_a_signature_takes_what_it_is_and_nothing_else(tmp_path: Path, device: EmulatorDevice) -> None:
    source = tmp_path / "types.cu"
    source.write_text(TYPES)
    function = device.compile(source).function("types")
    alloc, bfloat16 = device.memory.alloc, ml_dtypes.bfloat16
    pair = np.zeros((), [("a", np.int32), ("b", np.float32)])[()]
    good: list[Any] = [
        np.float32(1), np.uint32(2), np.bool_(True), pair, bfloat16(1), alloc((1,), np.float32), alloc((1,), np.uint32),
        alloc((1,), bfloat16), alloc((1,), np.float32), alloc((1,), bfloat16),
    ]  # fmt: skip
    device.launch(function, (1, 1, 1), (1, 1, 1), good)
    device.launch(function, (1, 1, 1), (1, 1, 1), [*good[:1], np.int32(2), *good[2:5], *[None] * 5])
    bits = [*good[:6], good[7], *good[7:]]  # pairs of bfloat16, as a kernel that copies words sees them
    device.launch(function, (1, 1, 1), (1, 1, 1), bits)
    for i, wrong, message in [
        (0, np.int32(1), r"int32 of 4 bytes, .* a value of 4 bytes \(floating-point number\)"),
        (1, np.float32(1), r"float32 of 4 bytes, .* a value of 4 bytes \(integer\)"),
        (2, np.int8(1), r"int8 of 1 bytes, .* a value of 1 bytes \(bool\)"),
        (3, np.float32(1), "float32 of 4 bytes, .* a value of 8 bytes"),
        (5, good[7], "a buffer of bfloat16, .* a buffer of 4-byte floating-point numbers"),
        (5, good[6], "a buffer of uint32, .* a buffer of 4-byte floating-point numbers"),
        (5, alloc((1,), np.float64), "a buffer of float64, .* a buffer of 4-byte floating-point numbers"),
    ]:
        with pytest.raises(KernelError, match=f"kernel types: argument {i} is {message}"):
            device.launch(function, (1, 1, 1), (1, 1, 1), [*good[:i], wrong, *good[i + 1 :]])


def test_clusters_need_sm_90(cache_dir: Path) -> None:
    device = EmulatorDevice(arch=80, cache_dir=cache_dir)
    function = device.compile(KERNELS / "transpose.cu").function("transpose")
    with pytest.raises(KernelError, match="clusters need sm_90"):
        device.launch(function, (2, 1, 1), (32, 8, 1), [None, None, np.int32(0), np.int32(0)], cluster=(2, 1, 1))


def test_more_than_48_kib_of_shared_memory_must_be_asked_for(cache_dir: Path) -> None:
    for arch, most in ((80, 163), (89, 99), (90, 227)):
        module = EmulatorDevice(arch=arch, cache_dir=cache_dir).compile(KERNELS / "transpose.cu")
        assert (
            module.function("transpose", max_dynamic_shared_bytes=most * 1024).max_dynamic_shared_bytes == most * 1024
        )
        with pytest.raises(KernelError, match=f"the device has {most * 1024} per block"):
            module.function("transpose", max_dynamic_shared_bytes=most * 1024 + 1)


def test_static_and_dynamic_shared_memory_count_together(cache_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "both.cu"
    source.write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void both() { __shared__ int tile[1024]; tile[threadIdx.x] = 0; }\n'
    )
    device = EmulatorDevice(arch=89, cache_dir=cache_dir)
    function = device.compile(source).function("both", max_dynamic_shared_bytes=99 * 1024)
    device.launch(function, (1, 1, 1), (32, 1, 1), [], shared_bytes=95 * 1024)
    device.synchronize()
    device.launch(function, (1, 1, 1), (32, 1, 1), [], shared_bytes=96 * 1024)
    with pytest.raises(KernelError, match="4096 bytes of static and 98304 of dynamic shared memory, at most 101376"):
        device.synchronize()


def test_unknown_names_are_refused(device: EmulatorDevice, cache_dir: Path) -> None:
    with pytest.raises(KernelError, match=r"no kernel absent; expected extern \"C\" __global__ void absent"):
        device.compile(KERNELS / "transpose.cu").function("absent")
    with pytest.raises(DeviceError, match="arch 91 is not known"):
        EmulatorDevice(arch=91, cache_dir=cache_dir)
    with pytest.raises(DeviceError, match="not-a-compiler is not installed"):
        EmulatorDevice(compiler="not-a-compiler", cache_dir=cache_dir)
    with pytest.raises(DeviceError, match="the sanitizer must be loaded before Python starts"):
        EmulatorDevice(sanitizer=Sanitizer.RACE)
