"""Loaded cubins and their kernels, with arguments laid out as the driver reads them."""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyvllm.device import Argument, Buffer, TensorMap
from tinyvllm.devices.cuda.driver import Driver
from tinyvllm.errors import KernelError

_DEFAULT_SHARED_BYTES = 48 * 1024
_MAX_SHARED_PERCENT = 100
_POINTER = struct.Struct("=Q")
_CODES = {"b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "f2": "e", "i4": "i", "u4": "I", "f4": "f", "i8": "q",
          "u8": "Q", "f8": "d"}  # fmt: skip
"""How ``struct`` calls a NumPy scalar of a kind and size."""


class ArgumentPack:
    """Storage for one kernel's arguments and the array of pointers to them; refilled for each launch.

    The driver copies what it needs before a launch returns, so one pack per kernel is enough. Arguments are checked one
    by one when their types are new; where they are not, one call writes them all.

    Args:
        what: names the kernel in messages.
        parameters: offset and size in bytes of each parameter.
    """

    def __init__(self, what: str, parameters: Sequence[tuple[int, int]]) -> None:
        self._what = what
        self._parameters = tuple(parameters)
        self._packers: dict[tuple[type, ...], struct.Struct] = {}  # by the arguments' types
        size = max([8, *(offset + size for offset, size in parameters)])
        storage = (ctypes.c_uint8 * size)()
        self._values = memoryview(storage).cast("B")
        first = ctypes.addressof(storage)
        self._pointers = (ctypes.c_void_p * max(1, len(parameters)))(*(first + offset for offset, _ in parameters))
        self.address = ctypes.addressof(self._pointers)
        """What ``cuLaunchKernelEx`` takes as ``kernelParams``."""

    def fill(self, arguments: Sequence[Argument]) -> None:
        """Writes the arguments in their places.

        Raises:
            KernelError: too few or too many, or one of another size than the parameter.
        """
        types = tuple(map(type, arguments))
        packer = self._packers.get(types)
        if packer is not None:
            given = [a.pointer if type(a) is Buffer else a for a in arguments if a is not None]
            packer.pack_into(self._values, 0, *given)
            return
        self._fill_one_by_one(arguments)
        codes = [_code_of(argument) for argument in arguments]
        if None not in codes:
            self._packers[types] = self._packer(codes)

    def _fill_one_by_one(self, arguments: Sequence[Argument]) -> None:
        if len(arguments) != len(self._parameters):
            raise KernelError(
                f"{self._what}: {len(arguments)} arguments, the kernel has {len(self._parameters)} parameters"
            )
        values = self._values
        for i, (offset, size) in enumerate(self._parameters):
            argument = arguments[i]
            if type(argument) is Buffer and size == _POINTER.size:
                _POINTER.pack_into(values, offset, argument.pointer)
            elif isinstance(argument, np.generic):
                data = argument.tobytes()
                if len(data) != size:
                    raise KernelError(f"{self._what}: argument {i} is {argument.dtype} of {len(data)} bytes, the "
                                      f"kernel's parameter has {size}")  # fmt: skip
                values[offset : offset + size] = data
            elif isinstance(argument, TensorMap) and size == len(argument.words):
                values[offset : offset + size] = argument.words
            elif argument is None and size == _POINTER.size:
                _POINTER.pack_into(values, offset, 0)
            else:
                kind = "a buffer" if isinstance(argument, Buffer) else f"{type(argument).__name__} {argument!r}"
                raise KernelError(f"{self._what}: argument {i} is {kind}, the kernel's parameter is a value of "
                                  f"{size} bytes; values are NumPy scalars, such as np.int32(3)")  # fmt: skip

    def _packer(self, codes: Sequence[str | None]) -> struct.Struct:
        """What writes arguments of these codes in their places."""
        layout, end = "=", 0
        for code, (offset, size) in zip(codes, self._parameters, strict=True):
            layout += f"{offset - end}x{code}"
            end = offset + size
        return struct.Struct(layout)


class CudaFunction:
    """One kernel of a module."""

    def __init__(self, driver: Driver, source: Path, name: str, handle: Any, module: CudaModule) -> None:
        self.name = name
        self.source = source
        self.handle = handle
        self.address = int(handle)
        """The driver's function, as :func:`~tinyvllm.devices.cuda.driver_launch.launch_function` takes it."""
        self._module = module  # keeps the code loaded
        self.what = f"{driver.where}: kernel {name} ({source.name})"
        kinds = driver.api.CUfunction_attribute

        def read(attribute: Any) -> int:
            return int(driver.call(driver.api.cuFuncGetAttribute, attribute, handle))

        self.num_registers = read(kinds.CU_FUNC_ATTRIBUTE_NUM_REGS)
        self.static_shared_bytes = read(kinds.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
        self.max_threads = read(kinds.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
        self.arguments = ArgumentPack(self.what, _parameters_of(driver, handle))
        self.max_dynamic_shared_bytes = _DEFAULT_SHARED_BYTES - self.static_shared_bytes
        """How much the launch may ask for."""

    def allow_shared(self, driver: Driver, wanted_bytes: int, max_bytes: int) -> None:
        """Raises the limit on dynamic shared memory to ``wanted_bytes``; it never falls.

        Raises:
            KernelError: with the kernel's static shared memory that is more than ``max_bytes``.
        """
        if wanted_bytes <= self.max_dynamic_shared_bytes:
            return
        if wanted_bytes + self.static_shared_bytes > max_bytes:
            raise KernelError(
                f"{self.what}: {wanted_bytes} bytes of dynamic and {self.static_shared_bytes} of static shared "
                f"memory, the card has {max_bytes} per block"
            )
        kind = driver.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.call(driver.api.cuFuncSetAttribute, self.handle, kind, wanted_bytes)
        self.max_dynamic_shared_bytes = wanted_bytes


class CudaModule:
    """A cubin in the card's memory; unloaded when nothing refers to it or its kernels any more."""

    def __init__(self, driver: Driver, source: Path, code: bytes, max_shared_bytes: int) -> None:
        self.source = source
        self._driver = driver
        self._max_shared_bytes = max_shared_bytes
        self._handle = driver.call(driver.api.cuModuleLoadData, code)
        weakref.finalize(self, _unload, driver, self._handle)

    def function(self, name: str, *, max_dynamic_shared_bytes: int = _DEFAULT_SHARED_BYTES) -> CudaFunction:
        """The kernel ``name``; see ``Module.function``."""
        driver = self._driver
        driver.enter()
        status, handle = driver.api.cuModuleGetFunction(self._handle, name.encode())
        if status == driver.api.CUresult.CUDA_ERROR_NOT_FOUND:
            raise KernelError(f'{self.source}: defines no kernel {name}; it must be extern "C" __global__')
        if status != 0:
            raise driver.failure(driver.api.cuModuleGetFunction, status)
        function = CudaFunction(driver, self.source, name, handle, self)
        function.allow_shared(driver, max_dynamic_shared_bytes, self._max_shared_bytes)
        # An SM runs two kernels at once only if they agree on how its memory is divided between L1 and shared memory.
        kind = driver.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        driver.call(driver.api.cuFuncSetAttribute, handle, kind, _MAX_SHARED_PERCENT)
        return function


def _code_of(argument: Argument) -> str | None:
    """How ``struct`` writes it; None: not at all."""
    if isinstance(argument, np.generic):
        return _CODES.get(argument.dtype.str[1:])
    if isinstance(argument, TensorMap):
        return None
    return f"{_POINTER.size}x" if argument is None else "Q"  # padding is written as zeros


def _parameters_of(driver: Driver, handle: Any) -> list[tuple[int, int]]:
    """Offset and size of each parameter of a kernel."""
    parameters: list[tuple[int, int]] = []
    while True:
        status, offset, size = driver.api.cuFuncGetParamInfo(handle, len(parameters))
        if status != 0:  # CUDA_ERROR_INVALID_VALUE: there are no more
            return parameters
        parameters.append((int(offset), int(size)))


def _unload(driver: Driver, handle: Any) -> None:
    driver.api.cuModuleUnload(handle)
