"""The devices that every test of a kernel runs on: the emulator always, the GPU where there is one."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.devices.interface import Device
from tinyvllm.errors import TinyvllmError

DEVICES = ("emulator", "cuda")


@functools.cache
def open_device(name: str) -> Device:
    """The device called ``name``; skips the test where there is none."""
    if name == "emulator":
        return EmulatorDevice()
    try:
        from tinyvllm.devices.cuda import CudaDevice
    except ImportError as error:
        pytest.skip(f"tinyvllm.devices.cuda cannot be imported: {error}")
    make: Any = CudaDevice
    try:
        return make()  # type: ignore[no-any-return]
    except (TinyvllmError, ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"no CUDA device: {error}")


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    """Each device in turn; one object for the whole session, so that hypothesis may run a test many times on it."""
    return open_device(request.param)
