"""The queue of an emulated stream, and what programmatic dependent launch means in it.

A dependent kernel runs up to its wait *before* its predecessor starts, and meanwhile all that the predecessor writes
is NaN: the latest time at which the hardware could run it is the usual one, this is the earliest. For that, tasks are
held back until it is known whether the next one depends on them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tinyvllm.device import Buffer
from tinyvllm.errors import KernelError, TinyvllmError

_MAX_HELD = 3


class Task(Protocol):
    """One entry of a stream."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def outputs(self) -> Sequence[Buffer]:
        """What it may write."""
        ...

    @property
    def starts_early(self) -> bool:
        """True if it may start before its predecessor has finished."""
        ...

    def again(self) -> Task:
        """A fresh task that does the same, for a graph's next replay."""
        ...

    def start_early(self) -> bool:
        """Runs up to the wait on the predecessor; True if by then its own successor may start too."""
        ...

    def run(self) -> None:
        """Runs to the end."""
        ...

    def drop(self) -> None:
        """Called instead of ``run`` when an earlier task failed."""
        ...

    def failed(self, message: str) -> TinyvllmError:
        """The error for what went wrong in it."""
        ...


class HostTask:
    """A copy, a fill or a GEMM: plain Python at its place in the stream."""

    starts_early = False

    def __init__(self, name: str, outputs: Sequence[Buffer], action: Callable[[], None]) -> None:
        self.name = name
        self.outputs = outputs
        self._action = action

    def again(self) -> HostTask:
        """Itself: it keeps nothing between runs."""
        return self

    def start_early(self) -> bool:
        """Never called."""
        return False

    def run(self) -> None:
        """Does it."""
        self._action()

    def drop(self) -> None:
        """Nothing to give back."""

    def failed(self, message: str) -> TinyvllmError:
        """The error for what went wrong in it."""
        return KernelError(message)


class Stream:
    """Runs tasks in order; holds some of them back for the sake of their successors."""

    def __init__(self, bytes_of: Callable[[Buffer], npt.NDArray[np.uint8]]) -> None:
        self._bytes_of = bytes_of
        self._held: deque[Task] = deque()
        self._early: dict[int, bool] = {}  # of held tasks that have started: may their successor start too
        self._recording: list[Task] | None = None

    def submit(self, task: Task) -> None:
        """Queues a task, or records it."""
        if self._recording is not None:
            self._recording.append(task)
            return
        if not task.starts_early:
            self.flush()
        self._held.append(task)
        if len(self._held) > _MAX_HELD:
            self._retire()

    def flush(self) -> None:
        """Runs everything that is held.

        Raises:
            KernelError: a kernel failed; what came after it is dropped.
        """
        while self._held:
            self._retire()

    def start_recording(self) -> list[Task]:
        """From now on tasks go to the returned list."""
        self._recording = []
        return self._recording

    def stop_recording(self) -> None:
        """Back to running."""
        self._recording = None

    def _retire(self) -> None:
        try:
            self._start_dependents()
            head = self._held.popleft()
            self._early.pop(id(head), None)
            head.run()
        except BaseException:
            for task in self._held:
                task.drop()
            self._held.clear()
            self._early.clear()
            raise

    def _start_dependents(self) -> None:
        """Starts what may start before the head of the queue does, with all that is not yet computed poisoned."""
        saved: list[tuple[Task, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = []
        try:
            for predecessor, successor in pairwise(tuple(self._held)):
                for buffer in predecessor.outputs:
                    memory = self._bytes_of(buffer)
                    saved.append((predecessor, memory, memory.copy()))
                    memory.fill(0xFF)
                if id(successor) not in self._early:
                    self._early[id(successor)] = successor.start_early()
                    _check_untouched(successor, saved)
                if not self._early[id(successor)]:
                    break
        finally:
            for _, memory, contents in reversed(saved):
                memory[:] = contents


def _check_untouched(task: Task, poisoned: Sequence[tuple[Task, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]) -> None:
    for predecessor, memory, _ in poisoned:
        if not (memory == 0xFF).all():
            raise task.failed(
                f"kernel {task.name} writes what its predecessor {predecessor.name} writes before its pdl_wait(); "
                "move the wait up"
            )
