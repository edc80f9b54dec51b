"""What a failed launch says: kernel, block, thread, source line, what happened, what to do."""

from __future__ import annotations

from tinyvllm.devices.emulator.library import Failure, FailureKind, Place, SplitBarrier
from tinyvllm.devices.emulator.symbols import kernel_line, source_lines

_WAITING = ("runs", "wait at a block barrier", "wait in a warp collective", "wait for memory to change",
            "wait for the predecessor")  # fmt: skip
_AT_BARRIER = 1
_SAME_BARRIER = "every thread of a block must reach the same __syncthreads()"


def describe(kernel: str, failure: Failure) -> str:
    """The message of the ``KernelError`` for a failed launch."""
    place = failure.places[0]
    detail = failure.detail.decode()
    match FailureKind(failure.kind):
        case FailureKind.DEADLOCK:
            return f"kernel {kernel}: {_deadlock(failure)}"
        case FailureKind.TRAP:
            text = "a device_assert failed, or __trap was called"
        case FailureKind.MISALIGNED:
            text = f"misaligned access: {detail}"
        case FailureKind.SIGNAL:
            text = f"{detail}, at address {failure.address:#x}" if "address" in detail else detail
        case FailureKind.SHARED_MEMORY:
            text = f"too much shared memory: {detail}"
        case FailureKind.OVERRUN:
            block = f"block {_triple(place.block)}"
            return f"{kernel_line(place.pc)}: kernel {kernel}, {block}: wrote beyond the end of {detail}"
        case FailureKind.BARRIER:
            text = f"{detail}; {_SAME_BARRIER}"
        case FailureKind.STACK:
            text = f"local arrays overflow a thread's stack of {detail}"
        case _:
            text = detail
    return f"{kernel_line(place.pc)}: kernel {kernel}, {describe_place(place)}: {text}"


def describe_split(kernel: str, split: SplitBarrier) -> str | None:
    """The message for two threads that met at one barrier from two source lines; None if it is the same line."""
    if source_lines(split.first.pc) == source_lines(split.second.pc):
        return None  # one barrier of the source that the compiler has duplicated
    return (
        f"kernel {kernel}: divergent barrier: {describe_place(split.first)} waits at {kernel_line(split.first.pc)} and "
        f"thread {_triple(split.second.thread)} of the same block at {kernel_line(split.second.pc)}: barriers that not "
        f"all threads reach; {_SAME_BARRIER}"
    )


def _deadlock(failure: Failure) -> str:
    groups = "; ".join(
        f"{place.num_lanes} {_WAITING[place.waiting]} at {kernel_line(place.pc)} (first {describe_place(place)})"
        for place in failure.places[: failure.num_places]
    )
    spinning = any(place.waiting == 3 for place in failure.places[: failure.num_places])
    remedy = "; launch with cooperative=True if it is another block that they wait for" if spinning else ""
    barrier = next((place for place in failure.places[: failure.num_places] if place.waiting == _AT_BARRIER), None)
    if barrier is not None and not spinning:
        remedy = f"; {kernel_line(barrier.pc)} is a barrier that not all threads reach: {_SAME_BARRIER}"
    return f"deadlock: no thread can go on: {groups}{remedy}"


def describe_place(place: Place) -> str:
    """``block (0, 0, 0) thread (1, 0, 0)``."""
    return f"block {_triple(place.block)} thread {_triple(place.thread)}"


def _triple(values: object) -> str:
    return "({}, {}, {})".format(*values)  # type: ignore[misc]  # a ctypes array of three
