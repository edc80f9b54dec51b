"""What a wrong kernel is told: the kernel, the block, the thread, the line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.samples import upload
from tinyvllm.devices.emulator import EmulatorDevice
from tinyvllm.errors import KernelError

PRELUDE = '#include "tinyvllm/prelude.cuh"\n'
GRID, BLOCK = (3, 1, 1), (64, 1, 1)

WRONG = {
    "shuffle_not_named": (
        "    if (threadIdx.x == 5) out[0] = __shfl_sync(0xffu << 8, 1, 0);",
        r"3: kernel wrong, block \(\d, 0, 0\) thread \(5, 0, 0\): the mask 0x0000ff00 of a shuffle does not name",
    ),
    "barrier_in_half_the_block": (
        "    if (threadIdx.x < 32) __syncthreads();\n    else { __syncthreads(); out[1] = 0; }\n",
        r"divergent barrier: block .* waits at \S+wrong.cu:[34] and thread .* of the same block at \S+wrong.cu:[34]",
    ),
    "barrier_in_a_branch_that_some_threads_pass_by": (
        "    if (threadIdx.x < 16)\n        __syncthreads();\n    out[threadIdx.x] = 1;",
        r"wrong.cu:4: kernel wrong, block .*: a barrier that not all threads reach: 48 of the block's 64 passed it by",
    ),
    "barrier_in_a_loop_of_as_many_rounds_as_the_thread_has": (
        "    for (int i = 0; i < threadIdx.x; ++i) __syncthreads();",
        r"wrong.cu:3: .*: a barrier that not all threads reach: \d+ of the block's 64 passed it by and",
    ),
    "barrier_in_the_branch_of_a_reduction": (
        "    __shared__ int sums[64];\n    sums[threadIdx.x] = 1;\n    __syncthreads();\n"
        "    for (int half = 32; half > 0; half /= 2)\n        if (threadIdx.x < half) {\n"
        "            sums[threadIdx.x] += sums[threadIdx.x + half];\n            __syncthreads();\n        }\n"
        "    __syncthreads();\n    out[threadIdx.x] = sums[0];",
        r"divergent barrier: .*wrong.cu:(9|11) and .*wrong.cu:(9|11): barriers that not all threads reach",
    ),
    "barrier_against_warp_collective": (
        "    if (threadIdx.x % 2)\n        __syncthreads();\n    __syncwarp();",
        r"deadlock: .*; \S+wrong.cu:4 is a barrier that not all threads reach: every thread of a block must reach",
    ),
    "deadlock_between_barrier_and_shuffle": (
        "    if (threadIdx.x == 40) __syncthreads();\n    else if (threadIdx.x > 31) __syncwarp();\n"
        "    else __syncthreads();\n    __syncthreads();",
        r"deadlock: no thread can go on: 3[23] wait at a block barrier at .*wrong.cu:\d.*31 wait in a warp collective",
    ),
    "different_collectives": (
        "    if (threadIdx.x % 2) __syncwarp();\n    else out[0] = __any_sync(0xffffffffu, 1);",
        r"lanes \d+ and \d+ of a warp meet in different collectives: (__syncwarp and __any|__any_sync and __sync)",
    ),
    "mma_in_half_a_warp": (
        "    float d[4] = {};\n    const uint32_t a[4] = {}, b[2] = {};\n    if (threadIdx.x < 48) mma_bf16(d, a, b);",
        r"mma.sync needs all 32 lanes of the warp, 16 are there",
    ),
    "misaligned_load": (
        "    out[threadIdx.x] = load16(x + 4 * threadIdx.x + (threadIdx.x == 9)).x;",
        r"wrong.cu:3: kernel wrong, block .* thread \(9, 0, 0\): misaligned access: .* not a multiple of 16",
    ),
    "assertion": (
        "    device_assert(threadIdx.x != 7);",
        r"wrong.cu:3: kernel wrong, block .* thread \(7, 0, 0\): a device_assert failed",
    ),
    "null_pointer": (
        "    const volatile int* nothing = nullptr;\n    if (threadIdx.x == 33) out[0] = nothing[1];",
        r"wrong.cu:4: kernel wrong, block .* thread \(33, 0, 0\): invalid address, at address 0x4",
    ),
    "division_by_zero": (
        "    out[threadIdx.x] = 7 / (int(threadIdx.x) - 12);",
        r"wrong.cu:3: kernel wrong, block .* thread \(12, 0, 0\): integer division by zero",
    ),
    "overrun_of_dynamic_shared_memory": (
        "    dynamic_shared<int>()[threadIdx.x] = 1;",
        r"kernel wrong, block \(\d, 0, 0\): wrote beyond the end of dynamic shared memory",
    ),
    "overrun_of_static_shared_memory": (
        "    __shared__ int tile[63];\n    volatile int* p = tile;\n    p[threadIdx.x] = 1;",
        r"kernel wrong, block \(\d, 0, 0\): wrote beyond the end of a __shared__ variable",
    ),
    "overrun_of_a_buffer": (
        "    out[threadIdx.x + 1] = 1;",
        r"kernel wrong: wrote outside the bounds of buffer argument 0 \(64,\)",
    ),
    "too_much_static_shared_memory": (
        "    __shared__ float tile[12500];\n    tile[threadIdx.x] = 1.0f;",
        r"too much shared memory: 50000 bytes of static shared memory, at most 49152",
    ),
    "endless_wait": (
        "    if (blockIdx.x == 1) counter_wait((const uint32_t*)x, 5);",
        r"deadlock: .*wait for memory to change at .*wrong.cu:3 .*cooperative=True",
    ),
    "stack_overflow": (
        "    volatile char much[70000];\n    for (int i = 0; i < 70000; ++i) much[i] = 1;",
        r"local arrays overflow a thread's stack|invalid address",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_told_where(device: EmulatorDevice, tmp_path: Path, name: str) -> None:
    body, message = WRONG[name]
    source = tmp_path / "wrong.cu"
    source.write_text(f'{PRELUDE}extern "C" __global__ void wrong(int* out, const int* x) {{\n{body}\n}}\n')
    out, x = device.memory.alloc((64,), np.int32), upload(device, np.zeros(512, np.int32))
    device.launch(device.compile(source).function("wrong"), GRID, BLOCK, [out, x], shared_bytes=63 * 4)
    with pytest.raises(KernelError) as caught:
        device.synchronize()
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_the_device_goes_on_after_a_failure(device: EmulatorDevice, tmp_path: Path) -> None:
    source = tmp_path / "some.cu"
    source.write_text(
        f'{PRELUDE}extern "C" __global__ void some(int* out, int bad) {{\n'
        "    device_assert(threadIdx.x != bad); out[threadIdx.x] = threadIdx.x; }\n"
    )
    function = device.compile(source).function("some")
    out = device.memory.alloc((64,), np.int32)
    for bad in (3, -1, 40, -1):
        device.memory.fill(out, 0xFF)
        device.launch(function, (1, 1, 1), BLOCK, [out, np.int32(bad)])
        if bad >= 0:
            with pytest.raises(KernelError):
                device.synchronize()
        else:
            np.testing.assert_array_equal(device.memory.download(out), np.arange(64))


def test_exited_threads_do_not_hold_up_a_barrier(
    device: EmulatorDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "exits.cu"
    source.write_text(
        f'{PRELUDE}extern "C" __global__ void exits(int* out) {{\n'
        "    if (threadIdx.x % 3 == 0)\n"
        "        return\n"
        "            ;\n"
        '    if (threadIdx.x == 1) printf("return;%c", \'"\');\n'
        "    __syncthreads();\n"
        "    out[threadIdx.x] = __shfl_sync(0xffffffffu, int(threadIdx.x), threadIdx.x % 32); }\n"
    )
    out = device.memory.alloc((64,), np.int32)
    device.launch(device.compile(source).function("exits"), (1, 1, 1), BLOCK, [out])
    found, expected = device.memory.download(out), np.arange(64)
    np.testing.assert_array_equal(found, np.where(expected % 3 == 0, -1, expected))
    assert capsys.readouterr().out == 'return;"'


PRINTING = """
extern "C" __global__ void prints(int* out, int bad) {
    if (threadIdx.x == 0) printf("block %d of %u: %.2f %s %llu\\n", blockIdx.x, gridDim.x, 1.5f, "text", 1ull << 40);
    __syncthreads();
    device_assert(threadIdx.x != bad);
    out[0] = printf("") == 0;
}
"""


def test_what_a_kernel_prints_comes_out_in_order_and_before_its_failure(
    device: EmulatorDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "prints.cu"
    source.write_text(PRELUDE + PRINTING)
    function = device.compile(source).function("prints")
    out = device.memory.alloc((1,), np.int32)
    print("one")
    device.launch(function, (1, 1, 1), BLOCK, [out, np.int32(-1)])
    device.synchronize()
    print("two")
    device.launch(function, (1, 1, 1), BLOCK, [out, np.int32(7)])
    with pytest.raises(KernelError, match="device_assert"):
        device.synchronize()
    printed = "block 0 of 1: 1.50 text 1099511627776"
    assert capsys.readouterr().out.splitlines() == ["one", printed, "two", printed]


def test_a_kernel_that_prints_without_end_is_cut_short_and_says_so(
    device: EmulatorDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "floods.cu"
    source.write_text(
        f'{PRELUDE}extern "C" __global__ void floods(int n) {{\n'
        '    for (int i = 0; i < n; ++i) printf("%05d %02d\\n", i, threadIdx.x);\n}\n'
    )
    device.launch(device.compile(source).function("floods"), (1, 1, 1), BLOCK, [np.int32(3000)])
    device.synchronize()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2**20 // 9 + 1
    assert len(set(lines[:-1])) == len(lines) - 1
    assert lines[-1] == "[more than 1 MiB printed by one launch: the rest is left out]"


def test_a_comparison_of_an_index_with_an_int_is_no_warning(device: EmulatorDevice, tmp_path: Path) -> None:
    """Where a source does not compile, the messages are of its mistakes alone."""
    source = tmp_path / "compares.cu"
    source.write_text(
        f'{PRELUDE}extern "C" __global__ void compares(int* out, int n) {{\n'
        "    for (int i = threadIdx.x; i < n; i += blockDim.x)\n"
        '        if (threadIdx.x < n && i < blockDim.x) printf("%llu", uint64_t(i));\n    mistake;\n}}\n'
    )
    with pytest.raises(KernelError, match="mistake") as caught:
        device.compile(source)
    assert "warning" not in str(caught.value)


def test_a_source_that_does_not_compile_says_where(device: EmulatorDevice, tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text(f'{PRELUDE}extern "C" __global__ void broken(int* out) {{\n    out[0] = nonsense;\n}}\n')
    with pytest.raises(KernelError, match=r"broken\.cu:3.*nonsense"):
        device.compile(source)
    with pytest.raises(KernelError, match="cannot be read"):
        device.compile(tmp_path / "absent.cu")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("__shared__ int a, b;", "one __shared__ variable per declaration"),
        ("__shared__ int a = 3;", "one __shared__ variable per declaration"),
        ("} __shared__ int outside; void f() {", "inside the kernel"),
    ],
)
def test_shared_declarations_that_are_not_understood(
    device: EmulatorDevice, tmp_path: Path, line: str, message: str
) -> None:
    source = tmp_path / "shared.cu"
    source.write_text(f'{PRELUDE}extern "C" __global__ void k(int* out) {{\n    {line}\n}}\n')
    with pytest.raises(KernelError, match=rf"shared\.cu:3: .*{message}"):
        device.compile(source)


def test_shared_memory_in_all_its_forms(device: EmulatorDevice, tmp_path: Path) -> None:
    source = tmp_path / "forms.cu"
    source.write_text(
        f"""{PRELUDE}
template <class T, int size>
__device__ T* once() {{
    __shared__ T values[size];  // one for each instantiation
    return values;
}}
struct alignas(32) Pair {{ float a, b; }};
extern "C" __global__ void forms(int* out) {{
    extern __shared__ __align__(16) unsigned char all[];
    __shared__
    int spread
        [2][4];
    __shared__ alignas(128) Pair pairs[2];
    alignas(64) __shared__ char bytes[3];
    __shared__ int single;
    if (threadIdx.x == 0) {{
        single = 5;
        spread[1][3] = 6;
        pairs[1].b = 7.0f;
        once<int, 4>()[3] = 8;
        once<float, 4>()[3] = 9.0f;
        all[15] = 10;
        const bool aligned = size_t(pairs) % 128 + size_t(bytes) % 64 + size_t(all) % 16 == 0;
        const int values[] = {{single, spread[1][3], int(pairs[1].b), once<int, 4>()[3], int(once<float, 4>()[3]),
                              all[15], int(sizeof spread), aligned}};
        for (int i = 0; i < 8; ++i) out[i] = values[i];
    }}
}}
"""
    )
    out = device.memory.alloc((8,), np.int32)
    device.launch(device.compile(source).function("forms"), (1, 1, 1), (32, 1, 1), [out], shared_bytes=16)
    assert device.memory.download(out).tolist() == [5, 6, 7, 8, 9, 10, 32, 1]


def test_shared_memory_starts_as_zeros_or_ones_in_turn(device: EmulatorDevice, tmp_path: Path) -> None:
    source = tmp_path / "poison.cu"
    source.write_text(
        f'{PRELUDE}extern "C" __global__ void poison(uint32_t* out) {{\n'
        "    __shared__ uint32_t own[32];\n"
        "    out[(blockIdx.x * 2 + 0) * 32 + threadIdx.x] = own[threadIdx.x];\n"
        "    out[(blockIdx.x * 2 + 1) * 32 + threadIdx.x] = dynamic_shared<uint32_t>()[threadIdx.x];\n"
        "    own[threadIdx.x] = dynamic_shared<uint32_t>()[threadIdx.x] = 5;\n}\n"
    )
    out = device.memory.alloc((4, 2, 32), np.uint32)
    device.launch(device.compile(source).function("poison"), (4, 1, 1), (32, 1, 1), [out], shared_bytes=128)
    found = device.memory.download(out)
    assert all(len(np.unique(block)) == 1 for block in found)
    assert {int(block[0, 0]) for block in found} == {0, 0xFFFFFFFF}


def test_a_watched_element_knows_who_wrote_it_last(tmp_path: Path) -> None:
    source = tmp_path / "wrote.cu"
    source.write_text(
        PRELUDE + 'extern "C" __global__ void wrote(int* out) {\n'
        "    if (blockIdx.x == 2) out[threadIdx.x] = 7;\n    __syncthreads();\n"
        "    if (blockIdx.x == 2 && threadIdx.x == 40) out[5] = 8;\n}\n"
    )
    device = EmulatorDevice(can_watch=True)
    out = upload(device, np.zeros(64, np.int32))
    watch = device.watch(out.view((1,), offset_bytes=5 * 4))
    device.launch(device.compile(source).function("wrote"), GRID, BLOCK, (out,))
    device.synchronize()
    assert watch.writer == "kernel wrote, block (2, 0, 0) thread (40, 0, 0)"
    device.memory.fill(out, 0)
    device.launch(device.compile(source).function("wrote"), (1, 1, 1), BLOCK, (out,))
    device.synchronize()
    assert watch.writer == "the host"
    with pytest.raises(KernelError, match="can_watch=True"):
        EmulatorDevice().watch(out)
