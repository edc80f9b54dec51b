"""The CUDA device on a card: the sample kernels, graphs, copies and what is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulator import samples
from tinyvllm.devices.cuda import CudaDevice, probe
from tinyvllm.errors import CapacityError, KernelError

from .support import BF16, assert_within, normal, put, sum_error

SAMPLES = samples.KERNELS


def test_the_probe_names_the_card(cuda: CudaDevice) -> None:
    found = probe()
    assert found.problems == ()
    assert found.device_name == cuda.properties.name
    assert found.arch == cuda.properties.arch
    assert None not in (found.nvrtc_version, found.cupy_version, found.cublaslt_version, found.driver_version)


def test_new_memory_is_poisoned_and_aligned(cuda: CudaDevice) -> None:
    for _ in range(2):  # the second time from the pool
        buffer = cuda.memory.alloc((1001,), np.float32)
        assert buffer.pointer % 256 == 0
        assert np.isnan(cuda.memory.download(buffer)).all()
        cuda.memory.fill(buffer, 0)
        assert (cuda.memory.download(buffer) == 0).all()


@pytest.mark.parametrize("size", [0, 1, 4097, 30_000_000])
def test_what_was_uploaded_comes_back_although_the_array_changed(cuda: CudaDevice, size: int) -> None:
    array = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    expected = array.copy()
    buffer = put(cuda, array)
    array[:] = 0
    np.testing.assert_array_equal(cuda.memory.download(buffer), expected)


def test_a_strided_array_is_uploaded_in_its_own_order(cuda: CudaDevice) -> None:
    array = normal(0, 40, 30).T
    np.testing.assert_array_equal(cuda.memory.download(put(cuda, array)), array)


def test_an_array_of_another_shape_is_not_uploaded(cuda: CudaDevice) -> None:
    with pytest.raises(KernelError, match=r"the array is float32 \(3,\), the buffer float32 \(4,\)"):
        cuda.memory.upload(cuda.memory.alloc((4,), np.float32), np.zeros(3, np.float32))


def test_a_download_awaited_one_step_late_has_what_was_there_when_it_started(cuda: CudaDevice) -> None:
    buffer = cuda.memory.alloc((1000,), np.int32)
    late = None
    for step in range(8):
        cuda.memory.upload(buffer, np.full(1000, step, np.int32))
        started = cuda.memory.start_download(buffer)
        if late is not None:
            assert (late.wait() == step - 1).all()
            assert (late.wait() == step - 1).all()
        late = started


def test_out_of_memory_is_one_error_with_numbers_and_knobs_and_the_card_goes_on(cuda: CudaDevice) -> None:
    wanted = 2 * cuda.properties.memory_bytes
    with pytest.raises(CapacityError, match=rf"{wanted} bytes.*cache.gpu_memory_utilization"):
        cuda.memory.alloc((wanted,), np.uint8)
    assert (cuda.memory.download(put(cuda, np.arange(9))) == np.arange(9)).all()


@pytest.mark.parametrize("name", samples.ALL)
def test_a_sample_kernel_is_its_definition(cuda: CudaDevice, name: str) -> None:
    run: Any = samples.ALL[name]
    run(cuda)


@pytest.mark.parametrize(("size_m", "size_n", "size_k"), [(1, 64, 64), (8, 256, 512), (13, 128, 2048)])
def test_the_tensor_core_gemm_with_dynamic_shared_memory_is_its_definition(
    cuda: CudaDevice, size_m: int, size_n: int, size_k: int
) -> None:
    x, w = normal(4, size_m, size_k, dtype=BF16), normal(5, size_n, size_k, dtype=BF16)
    shared_bytes = 3 * (64 + 8) * (64 + 8) * 2
    kernel = cuda.compile(SAMPLES / "gemm.cu").function("gemm_small", max_dynamic_shared_bytes=100 * 1024)
    sizes = [np.int32(size) for size in (size_m, size_n, size_k)]
    for asked in (shared_bytes, 100 * 1024):
        out = cuda.memory.alloc((size_m, size_n), np.float32)
        grid = (size_n // 64, -(-size_m // 8), 1)
        cuda.launch(kernel, grid, (128, 1, 1), [out, put(cuda, x), put(cuda, w), *sizes], shared_bytes=asked)
        wide, weights = x.astype(np.float64), w.astype(np.float64)
        assert_within(cuda.memory.download(out), wide @ weights.T, sum_error(np.abs(wide) @ np.abs(weights).T, size_k))


def test_a_barrier_over_the_whole_card_orders_a_cooperative_launch(cuda: CudaDevice) -> None:
    samples.run_grid_sum(cuda, num_blocks=4 * cuda.properties.num_sms, size=1_000_000, repeats=5)
    samples.run_last_block(cuda, num_blocks=4 * cuda.properties.num_sms, size=1_000_000)


class Pair:
    """y = scale x, then z = y + w, the second kernel launched dependent on the first."""

    def __init__(self, cuda: CudaDevice, size: int) -> None:
        module = cuda.compile(SAMPLES / "dependent.cu")
        self.cuda = cuda
        self.produce, self.consume = module.function("produce"), module.function("consume")
        self.x, self.w = normal(7, size), normal(8, size)
        self.buffers = [put(cuda, self.x), put(cuda, self.w)]
        self.y, self.z = (cuda.memory.alloc((size,), np.float32) for _ in range(2))

    def queue(self, scale: float = 2.0) -> None:
        x, w = self.buffers
        size = np.int32(self.x.size)
        grid, block = (-(-self.x.size // 256), 1, 1), (256, 1, 1)
        self.cuda.launch(self.produce, grid, block, [self.y, x, np.float32(scale), size], pdl=True)
        self.cuda.launch(self.consume, grid, block, [self.z, self.y, w, size], pdl=True)

    def check(self, scale: float = 2.0) -> None:
        y = np.float32(scale) * self.x
        np.testing.assert_array_equal(self.cuda.memory.download(self.y), y)
        np.testing.assert_array_equal(self.cuda.memory.download(self.z), y + self.w)


def test_a_dependent_launch_sees_what_its_predecessor_wrote(cuda: CudaDevice) -> None:
    pair = Pair(cuda, 1_000_000)
    for scale in (1.0, 2.0, 4.0):
        pair.queue(scale)
        pair.check(scale)


def test_a_graph_of_dependent_launches_replays_what_was_recorded_and_not_before(cuda: CudaDevice) -> None:
    pair = Pair(cuda, 1_000_000)
    pair.queue()
    cuda.memory.fill(pair.z, 0xFF)
    with cuda.capture() as graph:
        for _ in range(20):
            pair.queue()
    assert graph.kernels == ["produce", "consume"] * 20
    assert np.isnan(cuda.memory.download(pair.z)).all()
    for factor in (1, 3):
        pair.x = pair.x * np.float32(factor)
        cuda.memory.upload(pair.buffers[0], pair.x)
        graph.replay()
        pair.check()


def test_a_graph_keeps_its_buffers_alive(cuda: CudaDevice) -> None:
    pair = Pair(cuda, 1000)
    with cuda.capture() as graph:
        cuda.memory.fill(pair.y, 0)
        pair.queue()
    x, w, z = pair.x, pair.w, pair.z
    del pair
    others = [put(cuda, np.zeros(1000, np.float32)) for _ in range(8)]  # would take the place of what was freed
    graph.replay()
    np.testing.assert_array_equal(cuda.memory.download(z), np.float32(2) * x + w)
    assert all((cuda.memory.download(other) == 0).all() for other in others)


def test_after_a_failed_capture_the_device_goes_on(cuda: CudaDevice) -> None:
    pair = Pair(cuda, 1000)
    graphs = []

    def allocate_in_capture() -> None:
        with cuda.capture() as graph:
            graphs.append(graph)
            pair.queue()
            cuda.memory.alloc((4,), np.float32)

    with pytest.raises(KernelError, match="alloc inside a capture"):
        allocate_in_capture()
    with pytest.raises(KernelError, match="capture has not ended, or failed"):
        graphs[0].replay()
    with pytest.raises(KernelError, match="a capture inside a capture"), cuda.capture(), cuda.capture():
        pass
    pair.queue()
    pair.check()


@pytest.mark.parametrize(
    ("shape", "more", "message"),
    [
        (((1, 1, 1), (2048, 1, 1)), {}, "block.x is 2048"),
        (((1, 1, 1), (512, 1, 1)), {}, "512 threads in a block, __launch_bounds__ allows 256"),
        (((1, 70000, 1), (32, 1, 1)), {}, "grid.y is 70000"),
        (((1, 1, 1), (32, 1, 1)), {"shared_bytes": 60 * 1024}, "61440 bytes of dynamic shared memory"),
        (((10**6, 1, 1), (256, 1, 1)), {"cooperative": True}, "a cooperative grid of 1000000 blocks"),
        (((3, 1, 1), (32, 1, 1)), {"cluster": (2, 1, 1)}, "not a whole number of clusters"),
    ],
)
def test_a_launch_that_the_card_refuses_says_why(cuda: CudaDevice, shape: Any, more: Any, message: str) -> None:
    grid, block = shape
    out, x = cuda.memory.alloc((1, 2), np.float32), put(cuda, normal(0, 1, 8, dtype=BF16))
    kernel = cuda.compile(SAMPLES / "moments.cu").function("row_moments")
    with pytest.raises(KernelError, match=rf"kernel row_moments \(moments.cu\): .*{message}"):
        cuda.launch(kernel, grid, block, [out, x, np.int32(8)], **more)


def test_a_launch_in_clusters_runs(cuda: CudaDevice) -> None:
    if cuda.properties.arch < 90:
        pytest.skip("clusters need sm_90")
    x = normal(20, 8, 512, dtype=BF16)
    out = cuda.memory.alloc((8, 2), np.float32)
    kernel = cuda.compile(SAMPLES / "moments.cu").function("row_moments")
    cuda.launch(kernel, (8, 1, 1), (256, 1, 1), [out, put(cuda, x), np.int32(512)], cluster=(4, 1, 1))
    wide = x.astype(np.float64)
    assert_within(cuda.memory.download(out)[:, 0], wide.mean(1), sum_error(np.abs(wide).mean(1), 512))


def test_what_a_module_does_not_have_is_refused(cuda: CudaDevice, tmp_path: Path) -> None:
    module = cuda.compile(SAMPLES / "moments.cu")
    with pytest.raises(KernelError, match="defines no kernel block_product"):
        module.function("block_product")
    with pytest.raises(KernelError, match="1000000 bytes of dynamic and 128 of static shared memory"):
        module.function("row_moments", max_dynamic_shared_bytes=1_000_000)
    broken = tmp_path / "broken.cu"
    broken.write_text('#include "tinyvllm/prelude.cuh"\nextern "C" __global__ void f(float* x) { x[0] = nothing; }\n')
    with pytest.raises(KernelError, match=r"broken.cu\(2\).*nothing"):
        cuda.compile(broken)


def test_another_thread_may_go_on_with_the_device(cuda: CudaDevice) -> None:
    pair = Pair(cuda, 1000)
    with cuda.capture() as graph:
        pair.queue()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            graph.replay()
            pair.check()
            pair.queue(3.0)
            pair.check(3.0)
            Pair(cuda, 100_000).queue()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("kernel", "words"), [("writes_elsewhere", "CUDA_ERROR_ILLEGAL_ADDRESS"), ("stops_itself", "stopped itself")]
)
@pytest.mark.parametrize("check_each_launch", [False, True])
def test_a_kernel_that_fails_is_named_and_the_process_is_declared_lost(
    has_card: bool, tmp_path: Path, kernel: str, words: str, check_each_launch: bool
) -> None:
    if not has_card:
        pytest.skip("no NVIDIA card with driver and extra here")
    arguments = [sys.executable, "-m", "tests.devices.cuda_fault", str(tmp_path), kernel]
    done = subprocess.run(
        [*arguments, *(["check"] if check_each_launch else [])], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    launched, waited, afterwards = done.stdout.splitlines()
    first = launched if check_each_launch else waited
    assert first.startswith("KernelError: device cuda:0")
    assert words in first
    assert kernel in first
    assert "start it again" in afterwards
