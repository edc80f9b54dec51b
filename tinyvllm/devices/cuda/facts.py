"""What of CUDA a machine has, for ``doctor`` and for choosing a device. Never raises."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tinyvllm.devices.cuda.cublaslt import load_library
from tinyvllm.devices.cuda.driver import Driver, check_driver_version, version_text
from tinyvllm.devices.cuda.memory import load_cupy
from tinyvllm.devices.cuda.nvrtc_version import nvrtc_version

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class CudaProbe:
    """The facts; what is missing is None, and ``problems`` says why."""

    driver_version: str | None = None
    """Of CUDA, as the driver supports it: ``13.0``."""
    device_name: str | None = None
    arch: int | None = None
    """90 for sm_90."""
    num_sms: int | None = None
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    nvrtc_version: str | None = None
    cupy_version: str | None = None
    cublaslt_version: str | None = None
    problems: tuple[str, ...] = ()
    """Why ``device: cuda`` would not start; empty if it should."""

    @property
    def is_usable(self) -> bool:
        """True if nothing is missing."""
        return not self.problems


DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def find_driver() -> ctypes.CDLL | None:
    """The NVIDIA driver's library; None where no driver is installed."""
    try:
        return ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None


def probe(ordinal: int = 0) -> CudaProbe:
    """What there is of CUDA here, for card ``ordinal``."""
    problems: list[str] = []

    def attempt(find: Callable[[], Value]) -> Value | None:
        try:
            return find()
        except Exception as error:  # a broken installation may raise anything; this function only reports
            problems.append(str(error))
            return None

    driver = attempt(lambda: Driver(ordinal))
    nvrtc = attempt(nvrtc_version)
    memory = attempt(driver.memory_info) if driver else None
    if driver is not None and nvrtc is not None:
        version = driver.version
        attempt(lambda: check_driver_version(version, nvrtc))
    return CudaProbe(
        driver_version=version_text(driver.version) if driver else None,
        device_name=driver.name() if driver else None,
        arch=driver.arch if driver else None,
        num_sms=driver.attribute("MULTIPROCESSOR_COUNT") if driver else None,
        memory_bytes=memory[1] if memory else None,
        free_memory_bytes=memory[0] if memory else None,
        nvrtc_version=f"{nvrtc[0]}.{nvrtc[1]}" if nvrtc else None,
        cupy_version=attempt(lambda: str(load_cupy().__version__)),
        cublaslt_version=attempt(_cublaslt_version),
        problems=tuple(dict.fromkeys(problems)),
    )


def _cublaslt_version() -> str:
    version = int(load_library().cublasLtGetVersion())
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
