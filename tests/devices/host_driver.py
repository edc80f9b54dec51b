"""A driver made of host memory, for what is tested without a card."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any


class HostDriver:
    """As much of ``Driver`` as memory needs: copies are done when an event is waited for, as late as a card may."""

    where = "device fake"

    def __init__(self) -> None:
        self.stream = 0
        self.retired: list[int] = []
        self.freed: list[int] = []
        self._pending: list[tuple[int, int, int]] = []
        self._memory: list[Any] = []
        self.recorded: dict[int, int] = {}
        self.num_done = 0
        self.num_events = 0
        self.api = SimpleNamespace(
            cuMemHostAlloc=self._allocate,
            cuMemFreeHost=self.freed.append,
            cuStreamSynchronize=self._synchronize,
            cuEventCreate=self._create_event,
            cuEventDestroy=lambda handle: None,
            cuEventRecord=self._record,
            cuEventSynchronize=self._wait,
            copy=self._copy,
        )

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    def _synchronize(self, stream: Any) -> tuple[int]:
        self.finish()
        return (0,)

    def finish(self) -> None:
        self._run(len(self._pending) + self.num_done)

    def _allocate(self, size: int, flags: int) -> int:
        self._memory.append((ctypes.c_uint8 * size)())
        return ctypes.addressof(self._memory[-1])

    def _create_event(self, flags: int) -> int:
        self.num_events += 1
        return self.num_events

    def _copy(self, target: int, source: int, size: int) -> None:
        self._pending.append((target, source, size))

    def _record(self, handle: int, stream: Any) -> None:
        self.recorded[handle] = self.num_done + len(self._pending)

    def _wait(self, handle: int) -> None:
        self._run(self.recorded.get(handle, 0))

    def _run(self, until: int) -> None:
        while self.num_done < until:
            ctypes.memmove(*self._pending.pop(0))
            self.num_done += 1
