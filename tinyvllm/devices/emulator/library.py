"""The runtime and kernel libraries as ctypes sees them: structures in the order of ``cpp/runtime.hpp``, and calls."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tinyvllm.devices.emulator.build import Sanitizer
from tinyvllm.errors import DeviceError, KernelError


class Dim3Struct(ctypes.Structure):
    """``dim3``."""

    _fields_: ClassVar = [("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32)]


class LaunchConfig(ctypes.Structure):
    """``LaunchConfig``."""

    _fields_: ClassVar = [
        ("call", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", Dim3Struct),
        ("block", Dim3Struct),
        ("dynamic_shared_bytes", ctypes.c_uint32),
        ("max_static_shared_bytes", ctypes.c_uint32),
        ("max_shared_bytes", ctypes.c_uint32),
        ("is_cooperative", ctypes.c_uint32),
        ("num_workers", ctypes.c_uint32),
        ("max_resident_threads", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
    ]


class Place(ctypes.Structure):
    """``Place``: a lane, and the address in the code where it is."""

    _fields_: ClassVar = [
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("pc", ctypes.c_void_p),
        ("waiting", ctypes.c_uint32),
        ("num_lanes", ctypes.c_uint32),
    ]


class Failure(ctypes.Structure):
    """``Failure``."""

    _fields_: ClassVar = [
        ("kind", ctypes.c_uint32),
        ("num_places", ctypes.c_uint32),
        ("places", Place * 8),
        ("address", ctypes.c_uint64),
        ("detail", ctypes.c_char * 256),
    ]


class SplitBarrier(ctypes.Structure):
    """``SplitBarrier``."""

    _fields_: ClassVar = [("first", Place), ("second", Place)]


class FailureKind(IntEnum):
    """``FailureKind``."""

    NONE = 0
    DEADLOCK = 1
    TRAP = 2
    MISALIGNED = 3
    SIGNAL = 4
    SHARED_MEMORY = 5
    OVERRUN = 6
    STACK = 7
    COLLECTIVE = 8
    BARRIER = 9


class ParameterStruct(ctypes.Structure):
    """``Parameter``."""

    _fields_: ClassVar = [
        ("size", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("number", ctypes.c_uint32),
        ("number_bytes", ctypes.c_uint32),
    ]


class KernelInfoStruct(ctypes.Structure):
    """``KernelInfo``."""

    _fields_: ClassVar = [
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(ParameterStruct)),
        ("num_parameters", ctypes.c_uint32),
        ("max_threads", ctypes.c_uint32),
    ]


class ParameterKind(IntEnum):
    """What a kernel's parameter is: a value, a pointer it may write through, or a pointer to const."""

    VALUE = 0
    OUTPUT = 1
    INPUT = 2


class NumberKind(IntEnum):
    """``NumberKind``: what a value is, or what a pointer leads to; ``OTHER`` is a struct."""

    OTHER = 0
    BOOLEAN = 1
    INTEGER = 2
    FLOATING = 3


_NUMBERS = {NumberKind.BOOLEAN: "bool", NumberKind.INTEGER: "integer", NumberKind.FLOATING: "floating-point number"}
_KINDS = {NumberKind.BOOLEAN: "b", NumberKind.INTEGER: "iu", NumberKind.FLOATING: "f"}
"""Kinds of NumPy's dtypes that are such numbers."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a kernel, as its signature declares it.

    Attributes:
        size: in bytes.
        kind: a value or a pointer.
        number: what the value is, or what the pointer leads to.
        number_bytes: of that number; 0 for a struct.
    """

    size: int
    kind: ParameterKind
    number: NumberKind
    number_bytes: int

    def __str__(self) -> str:
        """For messages: ``a value of 4 bytes (integer)``."""
        number = _NUMBERS.get(self.number)
        if self.kind is ParameterKind.VALUE:
            return f"a value of {self.size} bytes" + (f" ({number})" if number else "")
        return "a buffer" + (f" of {self.number_bytes}-byte {number}s" if number else "")

    def holds(self, dtype: np.dtype[Any]) -> bool:
        """Whether values of ``dtype`` are such numbers. A struct holds anything, and so do integers in memory: bits."""
        is_bits = self.kind is not ParameterKind.VALUE and self.number is NumberKind.INTEGER
        if self.number is NumberKind.OTHER or is_bits:
            return True
        return dtype.kind in _KINDS[self.number] and dtype.itemsize == self.number_bytes


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """What a kernel library says of one kernel."""

    call: int
    parameters: tuple[Parameter, ...]
    max_threads: int


class RuntimeLibrary:
    """The loaded runtime; its functions are called without Python's lock held."""

    def __init__(self, path: Path, sanitizer: Sanitizer) -> None:
        """
        Raises:
            DeviceError: a sanitized runtime in a process that did not load the sanitizer first.
        """
        symbol = {Sanitizer.RACE: "__tsan_init", Sanitizer.BOUNDS: "__asan_init"}.get(sanitizer)
        if symbol is not None and not hasattr(ctypes.CDLL(None), symbol):
            raise DeviceError(
                f"emulator with sanitizer '{sanitizer.value}': the sanitizer must be loaded before Python starts; "
                "run the check through tinyvllm.devices.emulator.check"
            )
        library = ctypes.CDLL(str(path))
        self.create = _typed(library, "launch_create", ctypes.c_void_p, ctypes.POINTER(LaunchConfig))
        self.start_early = _typed(library, "launch_start_early", ctypes.c_int, ctypes.c_void_p)
        self.run = _typed(library, "launch_run", ctypes.c_int, ctypes.c_void_p)
        self.failure = _typed(library, "launch_failure", ctypes.POINTER(Failure), ctypes.c_void_p)
        self.split_barriers = _typed(
            library, "launch_split_barriers", ctypes.c_uint32, ctypes.c_void_p,
            ctypes.POINTER(ctypes.POINTER(SplitBarrier)),
        )  # fmt: skip
        self._printed = _typed(
            library, "launch_printed", ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
        )
        self.destroy = _typed(library, "launch_destroy", None, ctypes.c_void_p)
        self.allocate = _typed(library, "allocate", ctypes.c_void_p, ctypes.c_size_t)
        self.release = _typed(library, "release", None, ctypes.c_void_p)
        self.watch = _typed(library, "watch", None, ctypes.c_void_p, ctypes.c_size_t)
        self.watch_writer = _typed(library, "watch_writer", ctypes.POINTER(Place))
        self.watch_host = _typed(library, "watch_host", ctypes.c_int)

    def printed(self, launch: int) -> str:
        """What the kernel of a launch has printed."""
        num_bytes = ctypes.c_size_t()
        text = self._printed(launch, ctypes.byref(num_bytes))
        return ctypes.string_at(text, num_bytes.value).decode(errors="replace") if num_bytes.value else ""


def _typed(library: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
    function = library[f"tinyvllm_{name}"]
    function.restype = result
    function.argtypes = list(arguments)
    return function


def read_kernel_info(library: ctypes.CDLL, name: str, source: Path) -> KernelInfo:
    """What ``library`` says of the kernel ``name``.

    Raises:
        KernelError: it has no such kernel.
    """
    try:
        found = KernelInfoStruct.in_dll(library, f"tinyvllm_kernel_{name}")
    except ValueError as error:
        raise KernelError(f'{source}: no kernel {name}; expected extern "C" __global__ void {name}(...)') from error
    parameters = tuple(
        Parameter(each.size, ParameterKind(each.kind), NumberKind(each.number), each.number_bytes)
        for each in found.parameters[: found.num_parameters]
    )
    return KernelInfo(found.call, parameters, found.max_threads)
