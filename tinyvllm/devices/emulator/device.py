"""The emulated device: kernels compiled by the C++ compiler, run by the runtime library, GEMMs by NumPy."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyvllm.devices.compile_cache import default_cache_dir
from tinyvllm.devices.emulator.build import Compiler, Sanitizer, build_kernel, build_runtime, find_compiler
from tinyvllm.devices.emulator.failures import describe, describe_split
from tinyvllm.devices.emulator.library import (
    Dim3Struct,
    KernelInfo,
    LaunchConfig,
    ParameterKind,
    RuntimeLibrary,
    SplitBarrier,
    read_kernel_info,
)
from tinyvllm.devices.emulator.limits import MAX_STATIC_SHARED_BYTES, check_launch, properties_of
from tinyvllm.devices.emulator.memory import Allocation, EmulatorMemory, array_of, bytes_at
from tinyvllm.devices.emulator.stream import HostTask, Stream, Task
from tinyvllm.devices.interface import Argument, Buffer, DeviceProperties, Dim3, Function
from tinyvllm.errors import KernelError


@dataclass(frozen=True, slots=True)
class EmulatorFunction:
    """One kernel of a module, and what its signature says."""

    name: str
    info: KernelInfo
    max_dynamic_shared_bytes: int
    library: ctypes.CDLL
    """Keeps the code loaded."""


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
    ) -> None:
        self._cache_dir = default_cache_dir() if cache_dir is None else cache_dir
        self._sanitizer = sanitizer
        self._compiler: Compiler = find_compiler(compiler)
        self._runtime_path = build_runtime(self._compiler, self._cache_dir, sanitizer, runtime_flags)
        self._runtime = RuntimeLibrary(self._runtime_path, sanitizer)
        self._seeds = itertools.count(seed)
        self._num_workers = num_workers if sanitizer is Sanitizer.NONE else 1
        self._properties = properties_of(arch, num_sms, memory_bytes=16 * 1024**3)
        self._stream = Stream(lambda buffer: bytes_at(buffer.pointer, buffer.nbytes))
        self._memory = EmulatorMemory(self._runtime, self._stream, has_margins=sanitizer is Sanitizer.NONE)

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
            max_resident_threads=self._properties.max_threads_per_sm * self._properties.num_sms,
        )
        starts_early = pdl and self._properties.arch >= 90
        packed = pack_arguments(what, function.info, arguments)
        self._stream.submit(KernelTask(self._runtime, self._seeds, function, config, packed, starts_early))

    def gemm(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> None:
        """Queues ``out = x @ weight.T``; see ``Device.gemm``."""
        shapes = (x.shape[0], weight.shape[0]), (weight.shape[1],)
        if out.shape != shapes[0] or x.shape[1:] != shapes[1] or not out.dtype == x.dtype == weight.dtype:
            raise KernelError(f"gemm: out {out.dtype} {out.shape}, x {x.dtype} {x.shape}, weight {weight.dtype} "
                              f"{weight.shape} do not fit; expected [T, N], [T, K], [N, K] of one dtype")  # fmt: skip

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

    def synchronize(self) -> None:
        """Runs all queued work; raises what failed in it."""
        self._stream.flush()


@dataclass(frozen=True, slots=True)
class PackedArguments:
    """What ``cuLaunchKernel`` takes: an array of pointers to the values; and which buffers those are."""

    pointers: ctypes.Array[ctypes.c_void_p]
    values: tuple[object, ...]
    buffers: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]


def pack_arguments(what: str, info: KernelInfo, arguments: Sequence[Argument]) -> PackedArguments:
    """The arguments, checked against the kernel's signature.

    Raises:
        KernelError: too few or too many, a pointer for a value, or a value of another size.
    """
    if len(arguments) != len(info.parameters):
        raise KernelError(f"{what}: {len(arguments)} arguments, the kernel has {len(info.parameters)} parameters")
    values: list[object] = []
    pointers = (ctypes.c_void_p * max(1, len(arguments)))()
    for i, (argument, parameter) in enumerate(zip(arguments, info.parameters, strict=True)):
        is_pointer = isinstance(argument, Buffer) or argument is None
        size = 8 if is_pointer else np.asarray(argument).itemsize
        if is_pointer == (parameter.kind is ParameterKind.VALUE) or size != parameter.size:
            expected = f"a value of {parameter.size} bytes" if parameter.kind is ParameterKind.VALUE else "a buffer"
            got = "a buffer" if is_pointer else f"{type(argument).__name__} of {size} bytes"
            raise KernelError(f"{what}: argument {i} is {got}, the kernel's parameter is {expected}")
        value: object
        if is_pointer:
            value = ctypes.c_uint64(argument.pointer if isinstance(argument, Buffer) else 0)
        else:
            value = (ctypes.c_char * size).from_buffer_copy(np.asarray(argument).tobytes())
        values.append(value)
        pointers[i] = ctypes.addressof(value)
    pairs = [(a, p.kind) for a, p in zip(arguments, info.parameters, strict=True) if isinstance(a, Buffer)]
    return PackedArguments(
        pointers,
        tuple(values),
        tuple(buffer for buffer, _ in pairs),
        tuple(buffer for buffer, kind in pairs if kind is ParameterKind.OUTPUT),
    )


class KernelTask:
    """One launch in the stream."""

    def __init__(
        self,
        runtime: RuntimeLibrary,
        seeds: Iterator[int],
        function: EmulatorFunction,
        config: LaunchConfig,
        arguments: PackedArguments,
        starts_early: bool,
    ) -> None:
        self.name = function.name
        self.outputs = arguments.outputs
        self.starts_early = starts_early
        self._runtime = runtime
        self._seeds = seeds
        self._function = function
        self._config = config
        self._arguments = arguments
        self._launch: int | None = None

    def again(self) -> KernelTask:
        """The same launch, with the next seed."""
        return KernelTask(self._runtime, self._seeds, self._function, self._config, self._arguments, self.starts_early)

    def start_early(self) -> bool:
        """Runs up to the wait on the predecessor."""
        self._create()
        lets_dependents_go = self._runtime.start_early(self._launch)
        self._raise_failure()
        return bool(lets_dependents_go)

    def run(self) -> None:
        """Runs to the end."""
        if self._launch is None:
            self._create()
        self._runtime.run(self._launch)
        try:
            self._raise_failure()
        finally:
            self.drop()

    def drop(self) -> None:
        """Gives back what the launch holds."""
        if self._launch is not None:
            self._runtime.destroy(self._launch)
            self._launch = None

    def _create(self) -> None:
        self._config.arguments = ctypes.addressof(self._arguments.pointers)
        self._config.seed = next(self._seeds)
        self._launch = self._runtime.create(ctypes.byref(self._config))

    def _raise_failure(self) -> None:
        first = ctypes.POINTER(SplitBarrier)()
        for i in range(self._runtime.split_barriers(self._launch, ctypes.byref(first))):
            message = describe_split(self.name, first[i])
            if message is not None:
                raise KernelError(message)
        failure = self._runtime.failure(self._launch).contents
        if failure.kind != 0:
            raise KernelError(describe(self.name, failure))
        for i, buffer in enumerate(self._arguments.buffers):
            if isinstance(buffer.owner, Allocation) and not buffer.owner.is_intact():
                raise KernelError(
                    f"kernel {self.name}: wrote outside the bounds of buffer argument {i} {buffer.shape}; "
                    "python -m tinyvllm.devices.emulator.check --bounds names the line"
                )
