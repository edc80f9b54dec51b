"""The parts of the CUDA device that need no card: arguments, staging, choices on disk, shapes, messages."""

from __future__ import annotations

import ctypes
import gc
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvllm.device import Argument, Buffer
from tinyvllm.devices.cuda.cublaslt import ALGORITHM_BYTES, GemmShape, alignment_of
from tinyvllm.devices.cuda.failures import failure_of, out_of_memory
from tinyvllm.devices.cuda.gemm import AlgorithmStore, Gemm, shape_of
from tinyvllm.devices.cuda.module import ArgumentPack
from tinyvllm.devices.cuda.nvrtc_version import compile_arch, nvrtc_version
from tinyvllm.devices.cuda.pinned import DownloadPool, PinnedMemory, UploadRing
from tinyvllm.devices.nvrtc import compile_cubin
from tinyvllm.errors import CapacityError, DeviceError, KernelError, ShapeError

from .host_driver import HostDriver

SAMPLES = Path(__file__).resolve().parent.parent / "emulator" / "kernels"


def buffer(shape: tuple[int, ...], dtype: Any, pointer: int = 4096) -> Buffer:
    return Buffer(pointer, shape, np.dtype(dtype), None)


VALUES: list[st.SearchStrategy[Argument]] = [
    st.integers(-(2**31), 2**31 - 1).map(np.int32),
    st.integers(0, 2**64 - 1).map(np.uint64),
    st.floats(width=32, allow_nan=False).map(np.float32),
    st.floats(width=32, allow_nan=False).map(ml_dtypes.bfloat16),
    st.booleans().map(np.bool_),
    st.integers(0, 2**16 - 1).map(np.uint16),
    st.integers(0, 2**47).map(lambda pointer: buffer((1,), np.float32, pointer)),
    st.none(),
]
ONCE_OR_AGAIN = st.lists(st.sampled_from(VALUES), max_size=20).flatmap(
    lambda kinds: st.lists(st.tuples(*kinds), min_size=1, max_size=3)
)


@given(ONCE_OR_AGAIN)
def test_the_kernel_finds_each_argument_where_its_parameter_lies(launches: list[tuple[Argument, ...]]) -> None:
    """At the first launch with arguments of such types, and at those after it."""
    arguments = launches[-1]
    parameters, expected, offset = [], [], 0
    for argument in arguments:
        value = argument.pointer if isinstance(argument, Buffer) else 0
        data = argument.tobytes() if isinstance(argument, np.generic) else struct.pack("=Q", value)
        offset = -(-offset // len(data)) * len(data)  # aligned to its own size, as C does
        parameters.append((offset, len(data)))
        expected.append(data)
        offset += len(data)
    pack = ArgumentPack("kernel test", parameters)
    for launch in launches:
        pack.fill(launch)
    pointers = (ctypes.c_void_p * max(1, len(arguments))).from_address(pack.address)
    for i, data in enumerate(expected):
        assert ctypes.string_at(pointers[i] or 0, len(data)) == data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([np.int32(1)], "1 arguments, the kernel has 2 parameters"),
        ([np.int64(1), None], "argument 0 is int64 of 8 bytes, the kernel's parameter has 4"),
        ([None, None], "the kernel's parameter is a value of 4 bytes"),
        ([buffer((1,), np.int8), None], "argument 0 is a buffer, the kernel's parameter is a value of 4 bytes"),
        ([3, None], r"argument 0 is int 3.*NumPy scalars"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_by_number(arguments: list[Any], message: str) -> None:
    pack = ArgumentPack("kernel test", [(0, 4), (8, 8)])
    for _ in range(2):
        with pytest.raises(KernelError, match=rf"kernel test: .*{message}"):
            pack.fill(arguments)
        pack.fill([np.int32(1), None])  # one that fits may come before


@given(sizes=st.lists(st.sampled_from([0, 1, 255, 256, 700, 1023, 1024, 1025, 2500, 9001]), max_size=20))
def test_uploads_arrive_although_the_card_reads_them_as_late_as_it_may(sizes: list[int]) -> None:
    driver: Any = HostDriver()
    ring = UploadRing(driver, stream=None, segment_bytes=1024)
    random = np.random.default_rng(sum(sizes))
    arrays = [random.integers(0, 256, size, np.uint8) for size in sizes]
    targets = [np.zeros_like(array) for array in arrays]
    for array, target in zip(arrays, targets, strict=True):
        done = 0
        while done < array.size:
            address, piece = ring.take(array.size - done)
            assert 0 < piece.size <= array.size - done
            piece[...] = array[done : done + piece.size]
            driver.api.copy(target.ctypes.data + done, address, piece.size)
            done += piece.size
    driver.finish()
    for array, target in zip(arrays, targets, strict=True):
        np.testing.assert_array_equal(array, target)


def test_a_download_piece_is_used_again_only_after_it_has_been_given_back() -> None:
    driver: Any = HostDriver()
    pool = DownloadPool(driver)
    first, second = pool.take(5000), pool.take(8000)
    assert first[0].size_bytes == second[0].size_bytes == 8192
    assert first[0] is not second[0]
    pool.give_back(*first)
    assert pool.take(6000)[0] is first[0]


def test_memory_that_a_copy_may_still_write_to_is_given_back_only_after_it() -> None:
    """Whoever started a download may drop it: what comes then must not reach memory that is somebody else's."""
    driver: Any = HostDriver()
    pool = DownloadPool(driver)
    memory, event = pool.take(5000)
    source = np.arange(5000, dtype=np.uint8)
    driver.api.copy(memory.address, source.ctypes.data, 5000)
    address = memory.address
    del memory, event
    gc.collect()
    assert driver.freed == []
    PinnedMemory(driver, 100)
    assert driver.num_done == 1
    assert driver.freed == [address]


def test_memory_lives_as_long_as_an_array_of_it() -> None:
    driver: Any = HostDriver()
    memory = PinnedMemory(driver, 64)
    view = memory.bytes[8:].view(np.int32)[2:]
    address = memory.address
    del memory
    gc.collect()
    PinnedMemory(driver, 100)
    assert driver.freed == []
    assert view.nbytes == 48
    del view
    gc.collect()
    PinnedMemory(driver, 100)
    assert address in driver.freed


def test_a_choice_is_found_again_by_another_process_and_only_for_its_shape(tmp_path: Path) -> None:
    shape = GemmShape(8, 2048, 8192, "bfloat16")
    mine, theirs = (AlgorithmStore(tmp_path, "a card", 130000) for _ in range(2))
    mine.put(shape, False, b"1" * ALGORITHM_BYTES)
    theirs.put(shape, True, b"2" * ALGORITHM_BYTES)  # has not read what the other has written since
    found = AlgorithmStore(tmp_path, "a card", 130000)
    assert found.get(shape, False) == b"1" * ALGORITHM_BYTES
    assert found.get(shape, True) == b"2" * ALGORITHM_BYTES
    assert found.get(GemmShape(16, 2048, 8192, "bfloat16"), False) is None
    assert AlgorithmStore(tmp_path, "another card", 130000).get(shape, False) is None
    assert AlgorithmStore(tmp_path, "a card", 130100).get(shape, False) is None


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "not json",
        "[1]",
        '{"bfloat16 8x2048x8192 align 256": "beef"}',
        '{"bfloat16 8x2048x8192 align 256": 7}',
        f'{{"bfloat16 8x2048x8192 align 256": "{"x" * 2 * ALGORITHM_BYTES}"}}',
    ],
)
def test_a_damaged_file_of_choices_counts_as_empty(tmp_path: Path, contents: str) -> None:
    path = AlgorithmStore(tmp_path, "a card", 130000).path
    path.parent.mkdir(parents=True)
    path.write_text(contents)
    assert AlgorithmStore(tmp_path, "a card", 130000).get(GemmShape(8, 2048, 8192, "bfloat16"), False) is None


@given(st.lists(st.integers(1, 2**48), min_size=1, max_size=3))
def test_the_alignment_divides_every_address_and_no_larger_one_up_to_256_does(addresses: list[int]) -> None:
    alignment = alignment_of(*addresses)
    assert all(address % alignment == 0 for address in addresses)
    assert alignment == 256 or any(address % (2 * alignment) for address in addresses)


def test_nearly_as_many_rows_share_a_choice(tmp_path: Path) -> None:
    store = AlgorithmStore(tmp_path, "a card", 130000)
    for num_rows in (64, 128, 1024):
        store.put(GemmShape(num_rows, 2048, 8192, "bfloat16"), True, bytes([num_rows % 251]) * 64)
    assert [found[0] for found in store.near(GemmShape(112, 2048, 8192, "bfloat16"), True)] == [128, 64]
    assert [found[0] for found in store.near(GemmShape(600, 2048, 8192, "bfloat16"), True)] == [1024 % 251]
    assert store.near(GemmShape(8, 2048, 8192, "bfloat16"), True) == []
    assert store.near(GemmShape(112, 2048, 8192, "bfloat16"), False) == []
    assert store.near(GemmShape(112, 4096, 8192, "bfloat16"), True) == []
    assert store.near(GemmShape(112, 2048, 8192, "bfloat16", is_out_float32=True), True) == []


def test_the_shape_of_a_product_is_rows_by_out_by_in() -> None:
    kind = ml_dtypes.bfloat16
    found = shape_of(buffer((3, 5), kind), buffer((3, 7), kind, 4096 + 16), buffer((5, 7), kind))
    assert found == GemmShape(3, 5, 7, "bfloat16", alignment_bytes=16)
    assert found.flops == 2 * 3 * 5 * 7
    assert found.nbytes == 2 * (3 * 5 + 3 * 7 + 5 * 7)


@pytest.mark.parametrize(
    ("out", "x", "weight"), [((3, 5), (3, 7), (7, 5)), ((5, 3), (3, 7), (5, 7)), ((3,), (7,), (3, 7))]
)
def test_matrices_that_do_not_fit_are_refused(out: Any, x: Any, weight: Any) -> None:
    with pytest.raises(ShapeError, match=r"expected \[T, N\], \[T, K\], \[N, K\]"):
        shape_of(buffer(out, np.float32), buffer(x, np.float32), buffer(weight, np.float32))


class ProposingLibrary:
    """Stands in for cuBLASLt: proposes an algorithm that spells the shape, and notes what is multiplied how."""

    def __init__(self) -> None:
        self.multiplied: list[tuple[str, bool]] = []
        self.num_described = 0

    def describe(self, shape: GemmShape) -> Any:
        self.num_described += 1
        return SimpleNamespace(shape=shape)

    def candidates(self, description: Any, max_workspace_bytes: int, **options: Any) -> list[bytes]:
        shape = description.shape
        text = f"{shape.num_rows}x{shape.num_out}x{shape.num_in} {shape.dtype} {shape.alignment_bytes} {options}"
        return [text.encode()[:ALGORITHM_BYTES].ljust(ALGORITHM_BYTES, b"\0")]

    def multiply(self, description: Any, algorithm: ctypes.Array[ctypes.c_char], *arguments: Any) -> int:
        self.multiplied.append((algorithm.value.decode(), arguments[3]))
        return 0


def multiply(gemm: Gemm, num_rows: int, accumulate: bool = False, dtype: Any = np.float32, pointer: int = 4096) -> None:
    gemm.run(buffer((num_rows, 5), dtype), buffer((num_rows, 7), dtype, pointer), buffer((5, 7), dtype), accumulate)


def gemm_of(library: Any, folder: Path, batch_invariant: bool = False) -> Gemm:
    store = AlgorithmStore(folder, "a card", 1)
    return Gemm(library, store, buffer((1,), np.uint8), stream=0, batch_invariant=batch_invariant)


def test_a_product_is_described_once_and_anew_for_what_differs(tmp_path: Path) -> None:
    library = ProposingLibrary()
    gemm = gemm_of(library, tmp_path)
    for _ in range(2):
        multiply(gemm, 3)
        multiply(gemm, 4)
        multiply(gemm, 3, accumulate=True)
        multiply(gemm, 3, dtype=ml_dtypes.bfloat16)
        multiply(gemm, 3, pointer=4096 + 16)
        multiply(gemm, 0)
    expected = ["3x5x7 float32 256", "4x5x7 float32 256", "3x5x7 float32 256", "3x5x7 bfloat16 256", "3x5x7 float32 16"]
    assert [text.rsplit(" ", 1)[0] for text, _ in library.multiplied] == expected * 2
    assert [accumulate for _, accumulate in library.multiplied] == [False, False, True, False, False] * 2
    assert library.num_described == 5


def test_with_batch_invariance_the_algorithm_does_not_depend_on_the_rows(tmp_path: Path) -> None:
    library = ProposingLibrary()
    gemm = gemm_of(library, tmp_path, batch_invariant=True)
    for num_rows in (1, 8, 1000):
        multiply(gemm, num_rows)
    assert len({text for text, _ in library.multiplied}) == 1
    assert "'may_split': False" in library.multiplied[0][0]


@pytest.mark.parametrize(("arch", "expected"), [(80, "80"), (89, "89"), (90, "90a"), (100, "100"), (120, "120")])
def test_a_card_gets_code_of_its_own_architecture(arch: int, expected: str) -> None:
    assert compile_arch(arch) == expected


def test_an_error_of_an_earlier_kernel_names_the_suspects_and_says_that_the_process_is_lost() -> None:
    error = failure_of("cuStreamSynchronize", 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was "
                       "encountered", where="device cuda:0", recent=("rms_norm", "gemv"))  # fmt: skip
    assert isinstance(error, KernelError)
    for part in ("illegal address", "cuda:0", "rms_norm, gemv", "start it again", "check_each_launch"):
        assert part in str(error)


def test_errors_without_a_kernel_to_blame_are_the_devices() -> None:
    assert isinstance(failure_of("cuStreamCreate", 400, "CUDA_ERROR_INVALID_HANDLE", "invalid handle"), DeviceError)
    assert isinstance(failure_of("cuMemHostAlloc", 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"), CapacityError)


def test_out_of_memory_gives_the_numbers_and_the_knobs() -> None:
    message = str(out_of_memory("device cuda:0", 8 * 1024**3, 1024**3, 80 * 1024**3, 70 * 1024**3))
    for part in ("8.00 GiB", "1.00 GiB", "80.00 GiB", "70.00 GiB", "cache.gpu_memory_utilization",
                 "cache.num_blocks_override", "max_model_len"):  # fmt: skip
        assert part in message


@pytest.mark.parametrize("source", sorted(SAMPLES.glob("*.cu")), ids=lambda path: path.stem)
def test_a_sample_compiles_to_machine_code_for_hopper_and_is_cached(source: Path, tmp_path: Path) -> None:
    try:
        nvrtc_version()
    except DeviceError as error:
        pytest.skip(str(error))
    first = compile_cubin(source, compile_arch(90), cache_dir=tmp_path)
    (path,) = (tmp_path / "cubin").iterdir()
    written = path.stat().st_mtime_ns
    assert compile_cubin(source, compile_arch(90), cache_dir=tmp_path) == first
    assert path.stat().st_mtime_ns == written
    assert first.code.startswith(b"\x7fELF")
