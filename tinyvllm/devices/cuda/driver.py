"""The CUDA driver API on one card: found, started, called, and its errors raised. Knows nothing about kernels."""

from __future__ import annotations

import importlib
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from tinyvllm.devices.cuda.failures import INVALID_CONTEXT, NO_DEVICE, failure_of
from tinyvllm.errors import DeviceError

EXTRA = "pip install 'tinyvllm[cuda]'"
_MIN_ARCH = 80
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream of other libraries
_NUM_RECENT = 8


class Driver:
    """One card's context and stream, and the driver's functions with their errors raised.

    The device that made it is its only user, from one thread at a time.

    Args:
        ordinal: which card, as the driver counts them.

    Raises:
        DeviceError: the bindings, the driver or the card are missing, or too old.
    """

    def __init__(self, ordinal: int) -> None:
        self.api = load_bindings()
        self.where = f"device cuda:{ordinal}"
        self.recent: deque[str] = deque(maxlen=_NUM_RECENT)
        """Kernels launched since the last synchronisation."""
        self.retired: list[int] = []
        """Addresses of page-locked memory that nobody refers to, and that queued work may still write to."""
        self.version = start(self.api)
        self.device = find_card(self.api, ordinal)
        self.arch = self._read_arch()
        self.context = self.call(self.api.cuDevicePrimaryCtxRetain, self.device)
        weakref.finalize(self, self.api.cuDevicePrimaryCtxRelease, self.device)
        self.enter()
        self.stream = self.call(self.api.cuStreamCreate, _NON_BLOCKING)
        weakref.finalize(self, self.api.cuStreamDestroy, self.stream)
        weakref.finalize(self, free_retired, self.api, self.stream, self.retired)  # the last made is the first called

    def enter(self) -> None:
        """Makes the card's context that of the calling thread; ``call`` does so by itself."""
        self.call(self.api.cuCtxSetCurrent, self.context)

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """What the driver's ``function`` returns besides its status: nothing, one value, or a tuple.

        Raises:
            KernelError: an earlier kernel failed.
            CapacityError: out of memory.
            DeviceError: anything else.
        """
        result = function(*arguments)
        if result[0] == INVALID_CONTEXT:  # the first call from this thread
            self.api.cuCtxSetCurrent(self.context)
            result = function(*arguments)
        if result[0] != 0:
            raise self.failure(function, result[0])
        return result[1] if len(result) == 2 else result[1:] or None

    def failure(self, function: Callable[..., Any], status: Any) -> Exception:
        """The exception for ``status``, which is not success."""
        name, text = describe(self.api, status)
        return failure_of(function.__name__, int(status), name, text, where=self.where, recent=tuple(self.recent))

    def attribute(self, name: str) -> int:
        """The card's ``CU_DEVICE_ATTRIBUTE_<name>``."""
        attribute = getattr(self.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.call(self.api.cuDeviceGetAttribute, attribute, self.device))

    def name(self) -> str:
        """The card's name, as ``nvidia-smi`` prints it."""
        raw: bytes = self.call(self.api.cuDeviceGetName, 256, self.device)
        return raw.split(b"\0")[0].decode()

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes of the card; what cupy's pool keeps counts as taken."""
        free, total = self.call(self.api.cuMemGetInfo)
        return int(free), int(total)

    def _read_arch(self) -> int:
        arch = 10 * self.attribute("COMPUTE_CAPABILITY_MAJOR") + self.attribute("COMPUTE_CAPABILITY_MINOR")
        if arch < _MIN_ARCH:
            raise DeviceError(
                f"{self.where}: {self.name()} is sm_{arch}; the kernels need sm_{_MIN_ARCH} (Ampere) or later; "
                "use device: cpu"
            )
        return arch


def free_retired(api: Any, stream: Any, retired: list[int]) -> None:
    """Wait for the stream, and give the page-locked memory that nobody refers to back to the system.

    Whatever could write to it was queued before the last reference to it went. ``retired`` is empty afterwards.
    """
    if retired and int(api.cuStreamSynchronize(stream)[0]) == 0:
        while retired:
            api.cuMemFreeHost(retired.pop())


def load_bindings() -> Any:
    """The module ``cuda.bindings.driver``.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise DeviceError(f"device cuda: the package cuda-bindings is missing ({error}); {EXTRA}") from error


def start(api: Any) -> int:
    """Starts the driver; its version, for example 13000 for CUDA 13.0.

    Raises:
        DeviceError: there is no driver, or it would not start.
    """
    remedy = "install the NVIDIA driver (nvidia-smi must list a card), or use device: cpu"
    try:
        status = api.cuInit(0)[0]
    except Exception as error:  # the bindings raise several types when they do not find the library
        raise DeviceError(f"device cuda: the NVIDIA driver (libcuda) is missing ({error}); {remedy}") from error
    if status == NO_DEVICE:
        raise DeviceError("device cuda: the driver is there, but it finds no card; check nvidia-smi and "
                          "CUDA_VISIBLE_DEVICES, or use device: cpu")  # fmt: skip
    if status != 0:
        name, text = describe(api, status)
        raise DeviceError(f"device cuda: the NVIDIA driver would not start: {name} ({text}); {remedy}")
    return int(api.cuDriverGetVersion()[1])


def find_card(api: Any, ordinal: int) -> Any:
    """The driver's handle of card ``ordinal``.

    Raises:
        DeviceError: there are fewer cards.
    """
    count = int(api.cuDeviceGetCount()[1])
    if not 0 <= ordinal < count:
        raise DeviceError(f"device cuda:{ordinal}: there are {count} cards, numbered from 0")
    return api.cuDeviceGet(ordinal)[1]


def check_driver_version(driver_version: int, nvrtc_version: tuple[int, int]) -> None:
    """Raises ``DeviceError`` if the driver is of an older major version than the compiler whose cubins it must load."""
    if driver_version // 1000 < nvrtc_version[0]:
        raise DeviceError(
            f"device cuda: the driver supports CUDA {version_text(driver_version)}, the installed NVRTC is "
            f"{nvrtc_version[0]}.{nvrtc_version[1]} and needs a driver for CUDA {nvrtc_version[0]}.0 or later; "
            "update the NVIDIA driver"
        )


def version_text(version: int) -> str:
    """``13.0`` for 13000."""
    return f"{version // 1000}.{version % 1000 // 10}"


def describe(api: Any, status: Any) -> tuple[str, str]:
    """The driver's name and words for a status."""
    name, text = api.cuGetErrorName(status)[1], api.cuGetErrorString(status)[1]
    return (name or b"unknown error").decode(), (text or str(int(status)).encode()).decode()
