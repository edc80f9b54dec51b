"""The CUDA device: one card, one stream; kernels from NVRTC, products from cuBLASLt, memory from cupy's pool."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tinyvllm.device import BFLOAT16, Argument, Buffer, DeviceProperties, Dim3, Function, TensorMap
from tinyvllm.devices.compile_cache import default_cache_dir
from tinyvllm.devices.cuda.cublaslt import CublasLt
from tinyvllm.devices.cuda.driver import Driver, check_driver_version
from tinyvllm.devices.cuda.driver_launch import LaunchConfigs, LaunchShape, launch_failure, launch_function
from tinyvllm.devices.cuda.failures import INVALID_CONTEXT
from tinyvllm.devices.cuda.gemm import WORKSPACE_BYTES, AlgorithmStore, Gemm, GemmTiming, shape_of
from tinyvllm.devices.cuda.graph import CudaGraph
from tinyvllm.devices.cuda.memory import CudaMemory
from tinyvllm.devices.cuda.module import CudaFunction, CudaModule
from tinyvllm.devices.cuda.nvrtc_version import compile_arch, nvrtc_version
from tinyvllm.devices.cuda.pinned import Event
from tinyvllm.devices.cuda.tensor_map import encode
from tinyvllm.devices.nvrtc import compile_cubin
from tinyvllm.errors import KernelError

_WITH_TIMING = 0
_NUM_TIMINGS = 5
_COPIES_PER_CACHE = 3
"""Copies of a weight that a timing goes through, in sizes of the card's cache: none is found there by accident."""


class CudaDevice:
    """Implements ``Device`` on one NVIDIA card; used from one thread at a time.

    Args:
        ordinal: which card, as the driver counts them (``CUDA_VISIBLE_DEVICES`` included).
        cache_dir: where cubins and tuned GEMM choices are kept; the user's cache folder by default.
        batch_invariant: GEMMs whose rows have the same bits whatever the number of rows.
        check_each_launch: waits after each launch outside graphs, so that an error names the kernel that made it.

    Raises:
        DeviceError: a package of the extra, the driver or the card is missing; the message says which and what to do.
    """

    def __init__(
        self,
        ordinal: int = 0,
        cache_dir: Path | None = None,
        *,
        batch_invariant: bool = False,
        check_each_launch: bool = False,
    ) -> None:
        self._cache_dir = default_cache_dir() if cache_dir is None else cache_dir
        self._check_each_launch = check_each_launch
        self._driver = Driver(ordinal)
        check_driver_version(self._driver.version, nvrtc_version())
        self._stream = self._driver.stream
        self._properties = read_properties(self._driver)
        self._memory = CudaMemory(self._driver, self._stream, ordinal)
        library = CublasLt()
        self._gemm = Gemm(
            library,
            AlgorithmStore(self._cache_dir, f"{self._properties.name} {self._properties.num_sms}", library.version),
            self._memory.alloc((WORKSPACE_BYTES,), "uint8"),
            int(self._stream),
            batch_invariant=batch_invariant,
        )
        self._configs = LaunchConfigs(self._driver, self._stream, self._properties.arch)
        self._launch = launch_function(self._driver)
        self._graph: CudaGraph | None = None

    @property
    def name(self) -> str:
        """``"cuda"``."""
        return "cuda"

    @property
    def activation_dtype(self) -> np.dtype[Any]:
        """bfloat16."""
        return BFLOAT16

    @property
    def properties(self) -> DeviceProperties:
        """What the card is."""
        return self._properties

    @property
    def memory(self) -> CudaMemory:
        """Allocation and copies."""
        return self._memory

    @property
    def stream(self) -> int:
        """The address of the driver's stream, for other libraries that queue work in it."""
        return int(self._stream)

    def compile(self, source: Path, defines: Mapping[str, str | int] | None = None) -> CudaModule:
        """The module of a ``.cu`` file; see ``Device.compile``."""
        cubin = compile_cubin(source, compile_arch(self._properties.arch), defines, cache_dir=self._cache_dir)
        return CudaModule(self._driver, source, cubin.code, self._properties.max_shared_bytes)

    def launch(
        self,
        function: Function,
        grid: Dim3,
        block: Dim3,
        arguments: Sequence[Argument],
        *,
        shared_bytes: int = 0,
        pdl: bool = False,
        cooperative: bool = False,
        cluster: Dim3 = (1, 1, 1),
    ) -> None:
        """Queues a kernel; see ``Device.launch``."""
        if not isinstance(function, CudaFunction):
            raise KernelError(f"kernel {function.name} was compiled for another device, not for {self._driver.where}")
        config = self._configs.get(grid, block, shared_bytes, pdl, cooperative, cluster)
        function.arguments.fill(arguments)
        status = self._launch(config, function.address, function.arguments.address, None)
        if status != 0:
            shape = LaunchShape(grid, block, shared_bytes, pdl, cooperative, cluster)
            self._retry_in_this_thread(status, config, function, shape)
        self._driver.recent.append(function.name)
        if self._graph is not None:
            self._graph.add(function.name, function, *_owners(arguments))
        elif self._check_each_launch:
            self.synchronize()

    def tensor_map(self, matrix: Buffer, box_rows: int, *, paired: bool = False) -> TensorMap:
        """A matrix as the copy engine sees it; see ``Device.tensor_map``."""
        return encode(self._driver, matrix, box_rows, paired=paired)

    def gemm(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> None:
        """Queues ``out = x @ weight.T``; see ``Device.gemm``."""
        self._gemm.run(out, x, weight, accumulate)
        self._driver.recent.append("gemm")
        if self._graph is not None:
            self._graph.add("gemm", out.owner, x.owner, weight.owner, self._gemm)
        elif self._check_each_launch:
            self.synchronize()

    def tune_gemm(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> GemmTiming:
        """Times the algorithms for a product of these shapes and uses the fastest from now on, also after a restart.

        Takes some tenths of a second and a few copies of ``weight`` in device memory; ``out`` is overwritten.
        ``weight`` should hold values as in use: products of zeros are faster.
        """
        shape_of(out, x, weight)
        cache_bytes = self._driver.attribute("L2_CACHE_SIZE")
        copies = [self._memory.alloc(weight.shape, weight.dtype)
                  for _ in range(min(32, _COPIES_PER_CACHE * cache_bytes // max(1, weight.nbytes)))]  # fmt: skip
        for copy in copies:
            self._memory.copy(copy, weight)
        return self._gemm.tune(out, x, [weight, *copies], accumulate, self.time_us)

    def is_gemm_tuned(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> bool:
        """Whether ``tune_gemm`` has been called for such a product, now or in an earlier process."""
        return self._gemm.is_tuned(out, x, weight, accumulate)

    def time_us(self, work: Callable[[], None], repeats: int = _NUM_TIMINGS, *, in_graph: bool = True) -> float:
        """Median microseconds on the card, of ``repeats``, of what ``work`` queues.

        Args:
            work: queues launches, fills, copies or GEMMs.
            repeats: how often it is measured, after one time that is not.
            in_graph: records it once and replays it, so that the host's time to queue it does not count.
        """
        again = work
        if in_graph:
            with self.capture() as graph:
                work()
            again = graph.replay
        again()
        first, last = Event(self._driver, _WITH_TIMING), Event(self._driver, _WITH_TIMING)
        times = []
        for _ in range(repeats):
            first.record(self._stream)
            again()
            last.record(self._stream)
            last.wait()
            times.append(1000.0 * self._driver.call(self._driver.api.cuEventElapsedTime, first.handle, last.handle))
        return float(sorted(times)[repeats // 2])

    @contextmanager
    def capture(self) -> Iterator[CudaGraph]:
        """Within the ``with`` block launches, fills and GEMMs are recorded instead of run.

        Garbage is not collected meanwhile: a finalizer may free memory or unload the kernels of an engine that is gone,
        and such calls can invalidate a capture of another stream.
        """
        if self._graph is not None:
            raise KernelError(f"{self._driver.where}: a capture inside a capture")
        is_collecting = gc.isenabled()
        gc.disable()
        graph = CudaGraph(self._driver, self._stream)
        self._graph = self._memory.graph = graph
        try:
            yield graph
        except BaseException:
            graph.abandon()
            raise
        else:
            graph.finish()
        finally:
            self._graph = self._memory.graph = None
            if is_collecting:
                gc.enable()

    def synchronize(self) -> None:
        """Waits for all queued work; raises what failed in it."""
        self._driver.call(self._driver.api.cuStreamSynchronize, self._stream)
        self._driver.recent.clear()

    def _retry_in_this_thread(self, status: int, config: int, function: CudaFunction, shape: LaunchShape) -> None:
        """Launches again if only the context was not that of this thread; raises what else is wrong."""
        self._driver.enter()
        if status == INVALID_CONTEXT:
            status = self._launch(config, function.address, function.arguments.address, None)
        if status != 0:
            raise launch_failure(self._driver, self._properties, function, shape, status)


def _owners(arguments: Sequence[Argument]) -> Iterator[object]:
    """What must live as long as a launch with these arguments may run."""
    for argument in arguments:
        if isinstance(argument, Buffer | TensorMap):
            yield argument.owner if isinstance(argument, Buffer) else argument.matrix.owner


def read_properties(driver: Driver) -> DeviceProperties:
    """What a launcher may need to know of the card."""
    return DeviceProperties(
        name=driver.name(),
        arch=driver.arch,
        num_sms=driver.attribute("MULTIPROCESSOR_COUNT"),
        max_threads_per_block=driver.attribute("MAX_THREADS_PER_BLOCK"),
        max_threads_per_sm=driver.attribute("MAX_THREADS_PER_MULTIPROCESSOR"),
        max_blocks_per_sm=driver.attribute("MAX_BLOCKS_PER_MULTIPROCESSOR"),
        max_shared_bytes=driver.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        shared_bytes_per_sm=driver.attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        memory_bytes=driver.memory_info()[1],
    )
