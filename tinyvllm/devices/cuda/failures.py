"""What the driver's error codes mean for somebody who has to do something about them.

Codes: CUDA Driver API, ``CUresult``. Knows nothing about how a call is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyvllm.errors import CapacityError, DeviceError, KernelError, TinyvllmError

OUT_OF_MEMORY = 2
NO_DEVICE = 100
INVALID_CONTEXT = 201

_STICKY = {
    214: "an uncorrectable memory error of the card",
    700: "a kernel read or wrote an address that is not its own (illegal address)",
    702: "a kernel ran longer than the display's watchdog allows",
    710: "an assertion in a kernel failed",
    714: "a kernel broke its call stack",
    715: "a kernel executed an illegal instruction",
    716: "a kernel loaded or stored at an address that is not a multiple of the width (misaligned address)",
    717: "a kernel used an address of the wrong memory space",
    718: "a kernel jumped outside its code",
    719: "a kernel stopped itself (trap, device_assert) or hit a shared-memory address that does not exist",
}
"""Errors of an earlier launch, after which every call of the process to this card fails."""


def failure_of(
    function: str, code: int, name: str, text: str, *, where: str = "device cuda", recent: Sequence[str] = ()
) -> TinyvllmError:
    """The exception for a driver call that did not succeed.

    Args:
        function: the driver function that reported it, for example ``cuStreamSynchronize``.
        code: the number of the ``CUresult``; ``name`` and ``text`` are the driver's words for it.
        where: the card.
        recent: kernels launched since the last synchronisation, the newest last.
    """
    if code in _STICKY:
        failed = KernelError(
            f"{where}: {_STICKY[code]}: {name}, reported by {function}. Launched since the last wait, newest last: "
            f"{', '.join(recent) or 'nothing'}. The card refuses this process from now on: start it again. To find "
            "the kernel, make the device with check_each_launch=True, or run the kernel on device emulator"
        )
        failed.is_of_earlier_launch = True
        return failed
    if code == OUT_OF_MEMORY:
        return CapacityError(f"{where}: out of memory in {function} ({text})")
    return DeviceError(f"{where}: {function} failed: {name} ({text})")


def out_of_memory(where: str, wanted_bytes: int, free_bytes: int, total_bytes: int, pool_bytes: int) -> CapacityError:
    """The exception for an allocation that did not fit, with the numbers and the knobs."""
    return CapacityError(
        f"{where}: out of memory: {_gib(wanted_bytes)} wanted, {_gib(free_bytes)} of {_gib(total_bytes)} free, "
        f"{_gib(pool_bytes)} held by this process; lower cache.gpu_memory_utilization, cache.num_blocks_override or "
        "max_model_len, or end other processes on the card"
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**3:.2f} GiB ({size_bytes} bytes)"
