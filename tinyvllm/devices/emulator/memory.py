"""The emulator's global memory: host memory with marked margins, in the order of the stream."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tinyvllm.device import Array, Buffer, HostBuffer, Shape, check_corner
from tinyvllm.devices.emulator.library import RuntimeLibrary
from tinyvllm.devices.emulator.stream import HostTask, Stream
from tinyvllm.errors import CapacityError, KernelError

_MARGIN_BYTES = 256
_MARK = 0xA5
POISON = 0xFF
"""What new memory is filled with: a NaN in every float format, and -1 in every signed integer."""


class Allocation:
    """One block of memory with a margin on both sides; freed when nothing refers to it any more."""

    def __init__(self, runtime: RuntimeLibrary, size_bytes: int, margin_bytes: int) -> None:
        address = runtime.allocate(size_bytes + 2 * margin_bytes)
        if address is None:
            raise CapacityError(f"device emulator: {size_bytes} bytes of host memory cannot be allocated")
        self.pointer: int = address + margin_bytes
        whole = bytes_at(address, size_bytes + 2 * margin_bytes)
        self._margins = [whole[:margin_bytes], whole[margin_bytes + size_bytes :]]
        for margin in self._margins:
            margin[:] = _MARK
        whole[margin_bytes : margin_bytes + size_bytes] = POISON
        weakref.finalize(self, runtime.release, address)

    def is_intact(self) -> bool:
        """False if something has written in the margins."""
        return all(bool((margin == _MARK).all()) for margin in self._margins)


def bytes_at(pointer: int, size_bytes: int) -> npt.NDArray[np.uint8]:
    """The memory itself as an array of bytes, not a copy; the caller keeps it alive."""
    if size_bytes == 0:
        return np.empty(0, np.uint8)
    memory: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(pointer))
    return memory


def array_of(buffer: Buffer) -> Array:
    """The buffer's memory itself as an array, not a copy."""
    return bytes_at(buffer.pointer, buffer.nbytes).view(buffer.dtype).reshape(buffer.shape)


class EmulatorDownload:
    """A copy to the host that is made when the stream gets there."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._array: Array | None = None

    def fill(self, array: Array) -> None:
        """Called by the stream."""
        self._array = array

    def wait(self) -> Array:
        """The contents the buffer had at this point of the stream."""
        if self._array is None:
            self._flush()
        if self._array is None:
            raise KernelError("the download was lost: an earlier kernel failed")
        return self._array


class EmulatorMark:
    """Implements ``Mark``: whoever waits has everything run that is queued, as late as on a card."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush

    def set(self) -> None:
        """Nothing to do."""

    def wait(self) -> None:
        """Runs what is queued."""
        self._flush()


class EmulatorMemory:
    """Implements ``Memory``."""

    def __init__(self, runtime: RuntimeLibrary, stream: Stream, *, has_margins: bool, memory_bytes: int) -> None:
        self._runtime = runtime
        self._memory_bytes = memory_bytes
        self._stream = stream
        # Sanitizers find an overrun at the place where it happens: they get exact bounds.
        self._margin_bytes = _MARGIN_BYTES if has_margins else 0

    def alloc(self, shape: Shape, dtype: npt.DTypeLike) -> Buffer:
        """A new buffer, 256-byte aligned, every byte 0xFF."""
        kind = np.dtype(dtype)
        owner = Allocation(self._runtime, math.prod(shape) * kind.itemsize, self._margin_bytes)
        return Buffer(owner.pointer, tuple(shape), kind, owner)

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Copies ``array`` into ``buffer``."""
        if array.shape != buffer.shape or array.dtype != buffer.dtype:
            raise KernelError(
                f"upload: the array is {array.dtype} {array.shape}, the buffer {buffer.dtype} {buffer.shape}"
            )
        copy = array.copy()
        self._stream.submit(HostTask("upload", [buffer], lambda: np.copyto(array_of(buffer), copy)))

    def upload_corner(self, buffer: Buffer, array: Array) -> None:
        """Copies ``array`` into the first rows and columns of ``buffer``."""
        check_corner(buffer, array)
        copy, (rows, columns) = array.copy(), array.shape
        self._stream.submit(HostTask("upload", [], lambda: np.copyto(array_of(buffer)[:rows, :columns], copy)))

    def free_bytes(self) -> int:
        """The memory of the card that is emulated; what is in use is not counted."""
        return self._memory_bytes

    def download(self, buffer: Buffer) -> Array:
        """A copy of the buffer's contents after all work queued so far."""
        return self.start_download(buffer).wait()

    def start_download(self, buffer: Buffer) -> EmulatorDownload:
        """Queues a copy to the host."""
        download = EmulatorDownload(self._stream.flush)
        self._stream.submit(HostTask("download", [], lambda: download.fill(array_of(buffer).copy())))
        return download

    def alloc_host(self, shape: Shape, dtype: npt.DTypeLike) -> HostBuffer:
        """New memory, zeros: host and device share it here."""
        buffer = self.alloc(shape, dtype)
        array = array_of(buffer)
        array[...] = 0
        return HostBuffer(buffer, array)

    def mark(self) -> EmulatorMark:
        """A point in the stream."""
        return EmulatorMark(self._stream.flush)

    def fill(self, buffer: Buffer, byte: int) -> None:
        """Sets every byte of the buffer."""
        self._stream.submit(HostTask("fill", [buffer], lambda: bytes_at(buffer.pointer, buffer.nbytes).fill(byte)))
