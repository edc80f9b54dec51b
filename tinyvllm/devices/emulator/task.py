"""A launch as an entry of the stream: a kernel, its arguments checked against its signature, and how it went."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tinyvllm.device import Argument, Buffer, TensorMap
from tinyvllm.devices.emulator.failures import describe, describe_place, describe_split
from tinyvllm.devices.emulator.library import (
    KernelInfo,
    LaunchConfig,
    NumberKind,
    Parameter,
    ParameterKind,
    RuntimeLibrary,
    SplitBarrier,
)
from tinyvllm.devices.emulator.memory import Allocation
from tinyvllm.errors import KernelError, PluginError
from tinyvllm.plugin_call import PluginName


@dataclass(frozen=True, slots=True)
class EmulatorFunction:
    """One kernel of a module, and what its signature says."""

    name: str
    info: KernelInfo
    max_dynamic_shared_bytes: int
    library: ctypes.CDLL
    """Keeps the code loaded."""


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
        KernelError: too few or too many, a pointer for a value, or a value of another size or kind.
    """
    if len(arguments) != len(info.parameters):
        raise KernelError(f"{what}: {len(arguments)} arguments, the kernel has {len(info.parameters)} parameters")
    values: list[object] = []
    pointers = (ctypes.c_void_p * max(1, len(arguments)))()
    for i, (argument, parameter) in enumerate(zip(arguments, info.parameters, strict=True)):
        is_pointer = isinstance(argument, Buffer) or argument is None
        data = b"" if is_pointer else _bytes_of(argument)
        size = 8 if is_pointer else len(data)
        is_value = parameter.kind is ParameterKind.VALUE
        if is_pointer == is_value or size != parameter.size or not _is_of_kind(argument, parameter):
            in_it = f" of {argument.dtype}" if isinstance(argument, Buffer) and not is_value else ""
            got = f"a buffer{in_it}" if is_pointer else f"{type(argument).__name__} of {size} bytes"
            raise KernelError(f"{what}: argument {i} is {got}, the kernel's parameter is {parameter}")
        value: object
        if is_pointer:
            value = ctypes.c_uint64(argument.pointer if isinstance(argument, Buffer) else 0)
        else:
            value = (ctypes.c_char * size).from_buffer_copy(data)
        values.append(value)
        pointers[i] = ctypes.addressof(value)
    pairs = [(a, p.kind) for a, p in zip(arguments, info.parameters, strict=True) if isinstance(a, Buffer)]
    return PackedArguments(
        pointers,
        tuple(values),
        tuple(buffer for buffer, _ in pairs),
        tuple(buffer for buffer, kind in pairs if kind is ParameterKind.OUTPUT),
    )


def _bytes_of(argument: Argument) -> bytes:
    return argument.words if isinstance(argument, TensorMap) else np.asarray(argument).tobytes()


def _is_of_kind(argument: Argument, parameter: Parameter) -> bool:
    """Whether a value, or what is in a buffer, is of the type that the kernel's signature gives it."""
    if argument is None:
        return True
    if isinstance(argument, TensorMap):
        return parameter.number is NumberKind.OTHER
    return parameter.holds(argument.dtype)


class Watch:
    """One element of device memory, and who wrote it last."""

    def __init__(self, runtime: RuntimeLibrary, buffer: Buffer) -> None:
        self._runtime = runtime
        self._kept = buffer  # its memory stays
        self._writer: str | None = None
        runtime.watch(buffer.pointer, buffer.dtype.itemsize)

    @property
    def writer(self) -> str | None:
        """``kernel NAME, block (x, y, z) thread (x, y, z)``, ``the host``, or None if nobody has changed it."""
        self.before()
        return self._writer

    def before(self) -> None:
        """Before a kernel runs: what has changed since the last one, no kernel has."""
        if self._runtime.watch_host():
            self._writer = "the host"

    def after(self, kernel: str) -> None:
        """After it ran."""
        place = self._runtime.watch_writer()
        if place:
            self._writer = f"kernel {kernel}, {describe_place(place.contents)}"


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
        watch: Watch | None = None,
        launched_by: PluginName | None = None,
    ) -> None:
        self.name = function.name
        self._watch = watch
        self.outputs = arguments.outputs
        self.starts_early = starts_early
        self._runtime = runtime
        self._seeds = seeds
        self._function = function
        self._config = config
        self._arguments = arguments
        self._launched_by = launched_by
        self._launch: int | None = None

    def again(self) -> KernelTask:
        """The same launch, with the next seed."""
        return KernelTask(
            self._runtime, self._seeds, self._function, self._config, self._arguments, self.starts_early, self._watch,
            self._launched_by,
        )  # fmt: skip

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
        if self._watch is not None:
            self._watch.before()
        self._runtime.run(self._launch)
        if self._watch is not None:
            self._watch.after(self.name)
        try:
            self._write_printed()
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

    def _write_printed(self) -> None:
        """Everything that the kernel printed goes to standard output, among what the host has written before."""
        assert self._launch is not None
        text = self._runtime.printed(self._launch)
        if text and sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()

    def _raise_failure(self) -> None:
        first = ctypes.POINTER(SplitBarrier)()
        for i in range(self._runtime.split_barriers(self._launch, ctypes.byref(first))):
            message = describe_split(self.name, first[i])
            if message is not None:
                raise self.failed(message)
        failure = self._runtime.failure(self._launch).contents
        if failure.kind != 0:
            raise self.failed(describe(self.name, failure))
        for i, buffer in enumerate(self._arguments.buffers):
            if isinstance(buffer.owner, Allocation) and not buffer.owner.is_intact():
                raise self.failed(
                    f"kernel {self.name}: wrote outside the bounds of buffer argument {i} {buffer.shape}; "
                    "python -m tinyvllm.devices.emulator.check --bounds names the line"
                )

    def failed(self, message: str) -> KernelError | PluginError:
        """The error for a kernel that failed while it ran, which names the plugin that launched it if one did."""
        if self._launched_by is not None:
            return PluginError(f"{self._launched_by}: {message}")
        error = KernelError(message)
        error.is_of_earlier_launch = True
        return error
