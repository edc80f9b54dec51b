"""Page-locked host memory: where copies to and from the card are staged, so that they never wait for the stream.

The ring serves uploads, in order; the pool serves downloads, each of which keeps its piece until it has been awaited.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyvllm.devices.cuda.driver import Driver, free_retired

_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING: such events are cheaper
_SEGMENT_BYTES = 4 * 1024**2
_NUM_SEGMENTS = 4
_ALIGNMENT = 256
_SMALLEST_PIECE = 4096


class PinnedMemory:
    """A piece of page-locked memory. It lives as long as this object, ``bytes`` or a view of ``bytes``.

    Afterwards it is only retired: a copy or a kernel that was queued may still write to it. It is given back to the
    system once the stream has been waited for: before more is taken, or with the driver.
    """

    def __init__(self, driver: Driver, size_bytes: int) -> None:
        free_retired(driver.api, driver.stream, driver.retired)
        self.size_bytes = size_bytes
        self.address = int(driver.call(driver.api.cuMemHostAlloc, size_bytes, 0))
        memory = (ctypes.c_uint8 * size_bytes).from_address(self.address)  # what all arrays of it refer to
        self.bytes: npt.NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        weakref.finalize(memory, driver.retired.append, self.address)


class Event:
    """A point in the stream."""

    def __init__(self, driver: Driver, flags: int = _DISABLE_TIMING) -> None:
        self._driver = driver
        self.handle: Any = driver.call(driver.api.cuEventCreate, flags)
        weakref.finalize(self, _destroy_event, driver, self.handle)

    def record(self, stream: Any) -> None:
        """Moves to the end of what is queued."""
        self._driver.call(self._driver.api.cuEventRecord, self.handle, stream)

    def wait(self) -> None:
        """Returns when the stream has passed this point; raises what failed before it."""
        self._driver.call(self._driver.api.cuEventSynchronize, self.handle)


class UploadRing:
    """Hands out pinned memory in a circle of segments; a segment is used again when the card has read all of it."""

    def __init__(self, driver: Driver, stream: Any, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self._stream = stream
        self.segment_bytes = segment_bytes
        self._memory = PinnedMemory(driver, _NUM_SEGMENTS * segment_bytes)
        self._read = [Event(driver) for _ in range(_NUM_SEGMENTS)]
        self._segment = 0
        self._used = 0

    def take(self, wanted_bytes: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Address and bytes of a piece of at most ``wanted_bytes``; the caller queues the copy from it at once."""
        if self._used == self.segment_bytes:
            self._next_segment()
        size = min(wanted_bytes, self.segment_bytes - self._used)
        if size < wanted_bytes <= self.segment_bytes:  # a small array goes in one piece
            self._next_segment()
            size = wanted_bytes
        first = self._segment * self.segment_bytes + self._used
        self._used = min(self.segment_bytes, self._used + -(-size // _ALIGNMENT) * _ALIGNMENT)
        return self._memory.address + first, self._memory.bytes[first : first + size]

    def _next_segment(self) -> None:
        self._read[self._segment].record(self._stream)
        self._segment = (self._segment + 1) % _NUM_SEGMENTS
        self._used = 0
        self._read[self._segment].wait()  # never recorded counts as passed


class DownloadPool:
    """Pieces of pinned memory with an event each, kept for the next download of about that size."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: dict[int, list[tuple[PinnedMemory, Event]]] = {}

    def take(self, size_bytes: int) -> tuple[PinnedMemory, Event]:
        """A piece of at least that size that nobody else has."""
        size = max(_SMALLEST_PIECE, 1 << (size_bytes - 1).bit_length())
        free = self._free.get(size)
        return free.pop() if free else (PinnedMemory(self._driver, size), Event(self._driver))

    def give_back(self, memory: PinnedMemory, event: Event) -> None:
        """Called when the copy into ``memory`` is over and has been read."""
        self._free.setdefault(memory.size_bytes, []).append((memory, event))


def _destroy_event(driver: Driver, handle: Any) -> None:
    driver.api.cuEventDestroy(handle)
