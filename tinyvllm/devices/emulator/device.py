"""The emulated device: kernels compiled by the C++ compiler, run by the runtime library, GEMMs by NumPy."""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyvllm.device import BFLOAT16, Argument, Buffer, DeviceProperties, Dim3, Function, TensorMap
from tinyvllm.devices.compile_cache import default_cache_dir
from tinyvllm.devices.emulator.build import Compiler, Sanitizer, build_kernel, build_runtime, find_compiler
from tinyvllm.devices.emulator.library import Dim3Struct, LaunchConfig, RuntimeLibrary, read_kernel_info
from tinyvllm.devices.emulator.memory import EmulatorMemory, array_of, bytes_at
from tinyvllm.devices.emulator.stream import HostTask, Stream, Task
from tinyvllm.devices.emulator.task import EmulatorFunction, KernelTask, Watch, pack_arguments
from tinyvllm.devices.limits import MAX_STATIC_SHARED_BYTES, check_launch, properties_of
from tinyvllm.errors import KernelError
from tinyvllm.plugin_call import PluginName

_MAX_EARLY_FIBRES = 1024
_TENSOR_MAP = struct.Struct("=QIIII104x")
"""``TensorMap`` of ``include/tinyvllm/tensor_copy.cuh``: address, rows, columns, rows of a box, paired."""


@dataclass(frozen=True, slots=True)
class EmulatorModule:
    """A loaded kernel library."""

    source: Path
    library: ctypes.CDLL
    max_shared_bytes: int

    def function(self, name: str, *, max_dynamic_shared_bytes: int = MAX_STATIC_SHARED_BYTES) -> EmulatorFunction:
        """The kernel ``name``; see ``Module.function``."""
        if max_dynamic_shared_bytes > self.max_shared_bytes:
            raise KernelError(
                f"{self.source}: kernel {name}: {max_dynamic_shared_bytes} bytes of dynamic shared memory, "
                f"the device has {self.max_shared_bytes} per block"
            )
        info = read_kernel_info(self.library, name, self.source)
        return EmulatorFunction(name, info, max_dynamic_shared_bytes, self.library)


@dataclass(frozen=True, slots=True)
class EmulatorGraph:
    """Recorded tasks; ``tasks`` is filled while the capture lasts."""

    tasks: list[Task]
    stream: Stream

    def replay(self) -> None:
        """Queues the whole sequence again."""
        for task in self.tasks:
            self.stream.submit(task.again())


class EmulatorDevice:
    """Implements ``Device`` on the CPU.

    Args:
        arch: 80 or 90 (any known architecture compiles; the prelude distinguishes these two).
        seed: decides the order in which threads and blocks run; each launch uses the next one.
        num_sms: how many SMs a cooperative grid may fill.
        num_workers: OS threads that share the blocks of a launch.
        cache_dir: where compiled kernels are kept; the user's cache folder by default.
        sanitizer: what to look for; anything but ``NONE`` only in a process that ``check`` has started.
        compiler: the C++ compiler to call.
        runtime_flags: further options for the runtime's compilation.
        can_watch: ``watch`` works; a runtime of its own, with one worker.

    Attributes:
        launched_by: the plugin that launches kernels now; a kernel that fails when it runs names it. None: the core.
    """

    def __init__(
        self,
        *,
        arch: int = 90,
        seed: int = 0,
        num_sms: int = 4,
        num_workers: int = 1,
        cache_dir: Path | None = None,
        sanitizer: Sanitizer = Sanitizer.NONE,
        compiler: str | None = None,
        runtime_flags: tuple[str, ...] = (),
        can_watch: bool = False,
    ) -> None:
        self._cache_dir = default_cache_dir() if cache_dir is None else cache_dir
        self._sanitizer = sanitizer
        self._compiler: Compiler = find_compiler(compiler)
        flags = (*runtime_flags, "-DTINYVLLM_WATCH") if can_watch else runtime_flags
        self._runtime_path = build_runtime(self._compiler, self._cache_dir, sanitizer, flags)
        self._can_watch = can_watch
        self._watch: Watch | None = None
        self._runtime = RuntimeLibrary(self._runtime_path, sanitizer)
        self._seeds = itertools.count(seed)
        self.launched_by: PluginName | None = None
        self._num_workers = num_workers if sanitizer is Sanitizer.NONE and not can_watch else 1
        self._properties = properties_of(arch, num_sms, memory_bytes=16 * 1024**3)
        # ThreadSanitizer counts 8128 fibres at most, of the launch that runs and of the one that starts early.
        most = _MAX_EARLY_FIBRES if sanitizer is Sanitizer.RACE else self._properties.max_threads_per_sm * num_sms
        self._max_resident_threads = most
        self._stream = Stream(lambda buffer: bytes_at(buffer.pointer, buffer.nbytes))
        self._memory = EmulatorMemory(
            self._runtime,
            self._stream,
            has_margins=sanitizer is Sanitizer.NONE,
            memory_bytes=self._properties.memory_bytes,
        )

    @property
    def name(self) -> str:
        """``"emulator"``."""
        return "emulator"

    @property
    def activation_dtype(self) -> np.dtype[Any]:
        """bfloat16."""
        return BFLOAT16

    @property
    def properties(self) -> DeviceProperties:
        """What the emulated card is."""
        return self._properties

    @property
    def memory(self) -> EmulatorMemory:
        """Allocation and copies."""
        return self._memory

    def compile(self, source: Path, defines: Mapping[str, str | int] | None = None) -> EmulatorModule:
        """The module of a ``.cu`` file; see ``Device.compile``."""
        path = build_kernel(
            self._compiler, self._cache_dir, self._runtime_path, source, defines or {}, self._properties.arch,
            self._sanitizer,
        )  # fmt: skip
        return EmulatorModule(source, ctypes.CDLL(str(path)), self._properties.max_shared_bytes)

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
        if not isinstance(function, EmulatorFunction):
            raise KernelError(f"kernel {function.name} was compiled for another device, not for the emulator")
        what = f"kernel {function.name}"
        check_launch(
            what, self._properties, grid, block, shared_bytes=shared_bytes, cooperative=cooperative, cluster=cluster,
            max_dynamic_shared_bytes=function.max_dynamic_shared_bytes, max_threads=function.info.max_threads,
        )  # fmt: skip
        config = LaunchConfig(
            call=function.info.call,
            grid=Dim3Struct(*grid),
            block=Dim3Struct(*block),
            dynamic_shared_bytes=shared_bytes,
            max_static_shared_bytes=MAX_STATIC_SHARED_BYTES,
            max_shared_bytes=self._properties.max_shared_bytes,
            is_cooperative=cooperative,
            num_workers=self._num_workers,
            max_resident_threads=self._max_resident_threads,
        )
        starts_early = pdl and self._properties.arch >= 90
        packed = pack_arguments(what, function.info, arguments)
        self._stream.submit(
            KernelTask(
                self._runtime, self._seeds, function, config, packed, starts_early, self._watch, self.launched_by
            )
        )

    def tensor_map(self, matrix: Buffer, box_rows: int, *, paired: bool = False) -> TensorMap:
        """A matrix as ``cpp/hopper.cpp`` reads it; see ``Device.tensor_map``."""
        num_rows, num_columns = matrix.shape
        if matrix.pointer % 16 or num_columns % 8 or not 1 <= box_rows <= 256:
            raise KernelError(f"tensor_map: {matrix} in boxes of {box_rows} rows: 16-byte rows and 256 are the limits")
        words = _TENSOR_MAP.pack(matrix.pointer, num_rows, num_columns, box_rows, paired)
        return TensorMap(words, matrix)

    def gemm(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> None:
        """Queues ``out = x @ weight.T``; see ``Device.gemm``."""
        shapes = (x.shape[0], weight.shape[0]), (weight.shape[1],)
        has_dtypes = x.dtype == weight.dtype and out.dtype in (x.dtype, np.float32)
        if out.shape != shapes[0] or x.shape[1:] != shapes[1] or not has_dtypes:
            raise KernelError(f"gemm: out {out.dtype} {out.shape}, x {x.dtype} {x.shape}, weight {weight.dtype} "
                              f"{weight.shape} do not fit; expected [T, N], [T, K], [N, K] of one dtype (out may be "
                              "float32)")  # fmt: skip

        def multiply() -> None:
            result = array_of(x).astype(np.float32) @ array_of(weight).astype(np.float32).T  # [T, N]
            if accumulate:
                result += array_of(out).astype(np.float32)
            array_of(out)[...] = result.astype(out.dtype)

        self._stream.submit(HostTask("gemm", [out], multiply))

    @contextmanager
    def capture(self) -> Iterator[EmulatorGraph]:
        """Within the ``with`` block launches, fills and GEMMs are recorded instead of run."""
        graph = EmulatorGraph(self._stream.start_recording(), self._stream)
        try:
            yield graph
        finally:
            self._stream.stop_recording()

    def watch(self, element: Buffer) -> Watch:
        """Who writes one element, from now on; ``writer`` of what is returned says it, once the stream has run.

        Raises:
            KernelError: the device was not made to watch.
        """
        if not self._can_watch:
            raise KernelError("watch: make the device with can_watch=True")
        self.synchronize()
        self._watch = Watch(self._runtime, element)
        return self._watch

    def synchronize(self) -> None:
        """Runs all queued work; raises what failed in it."""
        self._stream.flush()
