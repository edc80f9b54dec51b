"""Device memory: allocated from cupy's pool, copied through page-locked memory, all in the order of one stream."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyvllm.device import Array, Buffer, HostBuffer, Shape, check_corner
from tinyvllm.devices.cuda.driver import EXTRA, Driver
from tinyvllm.devices.cuda.failures import out_of_memory
from tinyvllm.devices.cuda.graph import CudaGraph
from tinyvllm.devices.cuda.pinned import DownloadPool, Event, PinnedMemory, UploadRing
from tinyvllm.errors import DeviceError, KernelError

POISON = 0xFF
"""What new memory is filled with: a NaN in every float format, and -1 in every signed integer."""


class CudaDownload:
    """A copy to the host that may still be under way."""

    def __init__(
        self, pool: DownloadPool, pinned: PinnedMemory, event: Event, shape: Shape, dtype: np.dtype[Any]
    ) -> None:
        self._pool = pool
        self._pending: tuple[PinnedMemory, Event] | None = (pinned, event)
        self._shape, self._dtype = shape, dtype
        self._array: Array | None = None

    def wait(self) -> Array:
        """The contents the buffer had at this point of the stream."""
        if self._pending is None:
            assert self._array is not None
            return self._array
        pinned, event = self._pending
        event.wait()
        size_bytes = math.prod(self._shape) * self._dtype.itemsize
        self._array = pinned.bytes[:size_bytes].copy().view(self._dtype).reshape(self._shape)
        self._pool.give_back(pinned, event)
        self._pending = None
        return self._array


class CudaMark:
    """Implements ``Mark``."""

    def __init__(self, driver: Driver, stream: Any) -> None:
        self._event, self._stream = Event(driver), stream

    def set(self) -> None:
        """Moves to the end of what is queued."""
        self._event.record(self._stream)

    def wait(self) -> None:
        """Returns when the stream has passed it."""
        self._event.wait()


class CudaMemory:
    """Implements ``Memory`` on one card.

    A freed block may be handed out again at once: whoever gets it works in the same stream, behind the last use.
    """

    def __init__(self, driver: Driver, stream: Any, ordinal: int) -> None:
        self._driver = driver
        self._stream = stream
        self._cupy = load_cupy()
        self._card = self._cupy.cuda.Device(ordinal)
        self._pool = self._cupy.cuda.MemoryPool()
        self._uploads = UploadRing(driver, stream)
        self._downloads = DownloadPool(driver)
        self.graph: CudaGraph | None = None
        """The graph being recorded, if any; what cannot be part of one is then refused. The device sets it."""

    def alloc(self, shape: Shape, dtype: npt.DTypeLike) -> Buffer:
        """A new buffer, 512-byte aligned, every byte 0xFF.

        Raises:
            CapacityError: the card has not that much free.
        """
        self._refuse_in_capture("alloc")
        kind = np.dtype(dtype)
        size_bytes = math.prod(shape) * kind.itemsize
        try:
            with self._card:
                owner = self._pool.malloc(max(1, size_bytes))
        except self._cupy.cuda.memory.OutOfMemoryError:
            free, total = self._driver.memory_info()
            held = int(self._pool.total_bytes())
            raise out_of_memory(self._driver.where, size_bytes, free, total, held) from None
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            self._driver.memory_info()  # raises what failed before, if that is the reason
            raise DeviceError(f"{self._driver.where}: {size_bytes} bytes cannot be allocated: {error}") from error
        buffer = Buffer(int(owner.ptr), tuple(shape), kind, owner)
        self.fill(buffer, POISON)
        return buffer

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Copies ``array`` into ``buffer``; see ``Memory.upload``."""
        self._refuse_in_capture("upload")
        if array.shape != buffer.shape or array.dtype != buffer.dtype:
            raise KernelError(
                f"upload: the array is {array.dtype} {array.shape}, the buffer {buffer.dtype} {buffer.shape}"
            )
        source = _bytes_of(np.ascontiguousarray(array))
        done = 0
        while done < source.size:
            address, piece = self._uploads.take(source.size - done)
            piece[...] = source[done : done + piece.size]
            self._driver.call(
                self._driver.api.cuMemcpyHtoDAsync, buffer.pointer + done, address, piece.size, self._stream
            )
            done += piece.size

    def upload_corner(self, buffer: Buffer, array: Array) -> None:
        """Copies ``array`` into the first rows and columns of ``buffer``; see ``Memory.upload_corner``."""
        self._refuse_in_capture("upload")
        check_corner(buffer, array)
        width_bytes = array.shape[1] * array.dtype.itemsize
        max_rows = max(1, self._uploads.segment_bytes // max(1, width_bytes))
        for first in range(0, array.shape[0] if width_bytes else 0, max_rows):
            rows = array[first : first + max_rows]
            address, piece = self._uploads.take(rows.size * rows.itemsize)
            piece.view(rows.dtype).reshape(rows.shape)[...] = rows
            copy = self._driver.api.CUDA_MEMCPY2D()
            copy.srcMemoryType = self._driver.api.CUmemorytype.CU_MEMORYTYPE_HOST
            copy.srcHost, copy.srcPitch = address, width_bytes
            copy.dstMemoryType = self._driver.api.CUmemorytype.CU_MEMORYTYPE_DEVICE
            pitch_bytes = buffer.shape[1] * buffer.dtype.itemsize
            copy.dstDevice, copy.dstPitch = buffer.pointer + first * pitch_bytes, pitch_bytes
            copy.WidthInBytes, copy.Height = width_bytes, len(rows)
            self._driver.call(self._driver.api.cuMemcpy2DAsync, copy, self._stream)

    def download(self, buffer: Buffer) -> Array:
        """A copy of the buffer's contents after all work queued so far."""
        return self.start_download(buffer).wait()

    def start_download(self, buffer: Buffer) -> CudaDownload:
        """Queues a copy to the host and returns at once."""
        self._refuse_in_capture("start_download")
        pinned, event = self._downloads.take(max(1, buffer.nbytes))
        if buffer.nbytes:
            self._driver.call(
                self._driver.api.cuMemcpyDtoHAsync, pinned.address, buffer.pointer, buffer.nbytes, self._stream
            )
        event.record(self._stream)
        return CudaDownload(self._downloads, pinned, event, buffer.shape, buffer.dtype)

    def alloc_host(self, shape: Shape, dtype: npt.DTypeLike) -> HostBuffer:
        """New page-locked memory, zeros; see ``Memory.alloc_host``."""
        self._refuse_in_capture("alloc_host")
        kind = np.dtype(dtype)
        size_bytes = math.prod(shape) * kind.itemsize
        pinned = PinnedMemory(self._driver, max(1, size_bytes))
        pinned.bytes[:] = 0
        array = pinned.bytes[:size_bytes].view(kind).reshape(shape)
        return HostBuffer(Buffer(pinned.address, tuple(shape), kind, pinned), array)

    def mark(self) -> CudaMark:
        """A point in the stream."""
        return CudaMark(self._driver, self._stream)

    def fill(self, buffer: Buffer, byte: int) -> None:
        """Sets every byte of the buffer."""
        if buffer.nbytes:
            self._driver.call(self._driver.api.cuMemsetD8Async, buffer.pointer, byte, buffer.nbytes, self._stream)
        if self.graph is not None:
            self.graph.add("fill", buffer.owner)

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Queues a copy on the card between buffers of one size.

        Raises:
            KernelError: their sizes differ.
        """
        if target.nbytes != source.nbytes:
            raise KernelError(f"copy: the source has {source.nbytes} bytes, the target {target.nbytes}")
        self._driver.call(
            self._driver.api.cuMemcpyDtoDAsync, target.pointer, source.pointer, source.nbytes, self._stream
        )
        if self.graph is not None:
            self.graph.add("copy", target.owner, source.owner)

    def free_bytes(self) -> int:
        """What ``alloc`` can still hand out: free on the card, or kept by the pool for the next use."""
        return self._driver.memory_info()[0] + int(self._pool.free_bytes())

    def _refuse_in_capture(self, what: str) -> None:
        if self.graph is not None:
            raise KernelError(f"{what} inside a capture: a graph holds launches, fills, copies on the card and GEMMs; "
                              "do it before, or after")  # fmt: skip


def load_cupy() -> Any:
    """The package cupy, whose pool the memory comes from.

    Raises:
        DeviceError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module("cupy")
    except Exception as error:  # besides ImportError, whatever a broken CUDA installation makes it raise
        raise DeviceError(f"device cuda: the package cupy cannot be imported ({error}); {EXTRA}") from error


def _bytes_of(array: Array) -> npt.NDArray[np.uint8]:
    """The memory of a contiguous array itself, as bytes."""
    return array.reshape(-1).view(np.uint8)
