"""Launches ``host_ring.cu``: a step ends with its results in memory of the host and its tokens in their slots."""

from __future__ import annotations

import numpy as np

from tinyvllm.device import INT32, Array, Buffer, Gpu, Mark
from tinyvllm.errors import KernelError, ShapeError
from tinyvllm.ops.buffers import beside, check_buffer

_THREADS = 256
_NUM_PLACES = 4
"""Steps whose results are kept; a power of two, so that the count may wrap around."""
_WORD_BYTES = 4


class HostRing:
    """Copies of one buffer, as it was at the end of each step. A graph may make them, without new arguments.

    Args:
        device: where the buffer is.
        source: of a multiple of 4 bytes; it begins with the tokens of the step's rows, int32.
        newest: ``[S]``, int32: the newest token of each slot; written by nobody else.

    Raises:
        ShapeError: of another size.
    """

    def __init__(self, device: Gpu, source: Buffer, newest: Buffer) -> None:
        if source.nbytes % _WORD_BYTES:
            raise ShapeError(f"host_ring copies words of {_WORD_BYTES} bytes, the buffer has {source.nbytes} bytes")
        check_buffer("host_ring newest", newest, (None,), INT32)
        self._device, self._source, self._newest = device, source, newest
        defines = {"THREADS": _THREADS, "NUM_PLACES": _NUM_PLACES}
        self._function = device.compile(beside(__file__, "host_ring.cu"), defines).function("host_ring")
        self._num_words = source.nbytes // _WORD_BYTES
        self._ring = device.memory.alloc_host((_NUM_PLACES, 1 + self._num_words), np.uint32)
        self._marks = [device.memory.mark() for _ in range(_NUM_PLACES)]
        self._device_count = device.memory.alloc((1,), np.uint32)
        device.memory.fill(self._device_count, 0)
        self._count = 0

    def queue(self, slots: Buffer) -> None:
        """Queue a copy. Recorded in a graph, each replay makes one. Whoever queues or replays calls ``last`` then.

        Args:
            slots: ``[B]``, int32: where the tokens of the first ``B`` rows go; below zero: nowhere.
        Raises:
            ShapeError: of another shape or dtype, or of more rows than the source has words.
        """
        check_buffer("host_ring slots", slots, (None,), INT32)
        num_rows = slots.shape[0]
        if num_rows > self._num_words:
            raise ShapeError(f"host_ring has {num_rows} slots, the buffer {self._num_words} words")
        arguments = (
            self._ring.buffer, self._device_count, self._newest, self._source, slots, np.int32(self._num_words),
            np.int32(num_rows),
        )  # fmt: skip
        self._device.launch(self._function, (1, 1, 1), (_THREADS, 1, 1), arguments, pdl=True)

    def recover(self) -> None:
        """Count as the device does, after a step that was perhaps queued and was never asked for. Waits."""
        self._count = int(self._device.memory.download(self._device_count)[0])

    def last(self) -> HostCopy:
        """The copy that was queued just now. It is overwritten by the fourth after it."""
        count = self._count
        self._count = (count + 1) % 2**32
        mark = self._marks[count % _NUM_PLACES]
        mark.set()
        return HostCopy(self._ring.array[count % _NUM_PLACES], mark, count)


class HostCopy:
    """Bytes on their way to the host.

    Args:
        place: ``[1 + N]``, uint32: where they come, behind the count of their step.
        mark: set behind the step.
        count: of the step.
    """

    __slots__ = ("_bytes", "_count", "_mark", "_place")

    def __init__(self, place: Array, mark: Mark, count: int) -> None:
        self._place, self._mark, self._count = place, mark, count
        self._bytes: Array | None = None

    def wait(self) -> Array:
        """``[4 N]``, uint8: what the buffer held at the end of the step.

        Raises:
            KernelError: the step failed; or another step's copy is there, which was awaited too late or never queued.
        """
        if self._bytes is None:
            self._mark.wait()
            if self._place[0] != self._count:
                raise KernelError(
                    f"host_ring: the copy of step {self._place[0]} is where step {self._count}'s should be"
                )
            self._bytes = self._place[1:].copy().view(np.uint8)
        return self._bytes
