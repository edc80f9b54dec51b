"""Failures that come when a test says so: at the n-th call of a place, with an exception of any kind."""

from __future__ import annotations

from collections.abc import Callable

from tinyvllm.engine.blocks import BlockManager
from tinyvllm.errors import CapacityError, KernelError, PluginError
from tinyvllm.shapes import Int32


class Panic(BaseException):
    """What a library written in Rust raises where it panics: no ``Exception``."""


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("injected"),
    "KeyError": lambda: KeyError("injected"),
    "MemoryError": lambda: MemoryError("injected"),
    "Panic": lambda: Panic("injected"),
    "PluginError": lambda: PluginError("injected"),
    "KernelError": lambda: KernelError("injected"),
    "CapacityError": lambda: CapacityError("injected"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("injected"),
}


class Faults:
    """Which places fail next. A place is a name; whoever stands for it calls :meth:`pass_through`."""

    def __init__(self) -> None:
        self._armed: dict[str, tuple[int, str]] = {}
        self.fired: list[tuple[str, str]] = []
        """Place and exception of what has failed, in order."""

    def arm(self, place: str, exception: str, calls_before: int = 0) -> None:
        """Let a place raise once, after so many calls that go well."""
        self._armed[place] = (calls_before, exception)

    def disarm(self) -> None:
        """Let everything go well from now on."""
        self._armed.clear()

    def pass_through(self, place: str) -> None:
        """Return, or raise if it is this place's turn."""
        if place not in self._armed:
            return
        calls_before, exception = self._armed[place]
        if calls_before:
            self._armed[place] = (calls_before - 1, exception)
            return
        del self._armed[place]
        self.fired.append((place, exception))
        raise EXCEPTIONS[exception]()


class FailingBlocks(BlockManager):
    """A block manager that may fail before or after it has changed anything."""

    def __init__(self, num_blocks: int, faults: Faults) -> None:
        super().__init__(num_blocks)
        self._faults = faults

    def allocate(self, count: int) -> Int32:
        self._faults.pass_through("allocate")
        blocks = super().allocate(count)
        self._faults.pass_through("allocated")
        return blocks

    def share(self, blocks: Int32) -> None:
        self._faults.pass_through("share")
        super().share(blocks)
        self._faults.pass_through("shared")

    def release(self, blocks: Int32) -> None:
        self._faults.pass_through("release")
        super().release(blocks)
        self._faults.pass_through("released")
