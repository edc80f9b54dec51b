"""Which NVRTC is installed. Compiling with it is ``tinyvllm.devices.nvrtc``, which needs no driver."""

from __future__ import annotations

import importlib

from tinyvllm.devices.cuda.driver import EXTRA
from tinyvllm.errors import DeviceError


def nvrtc_version() -> tuple[int, int]:
    """Major and minor version of the NVRTC library.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        status, major, minor = importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except Exception as error:  # the bindings raise several types when they do not find the library
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceError(f"device cuda: the compiler NVRTC is missing ({reason}); {EXTRA}") from error
    if status != 0:
        raise DeviceError(f"device cuda: NVRTC does not start ({status.name}); {EXTRA}")
    return int(major), int(minor)


def compile_arch(arch: int) -> str:
    """What to compile for on a card of that compute capability: ``90a`` on Hopper, for its own instructions."""
    return "90a" if arch == 90 else str(arch)
