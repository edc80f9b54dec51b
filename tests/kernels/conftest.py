"""The devices that every test of a kernel runs on: the emulator always, the GPU where there is one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.caches import add_runtimes
from tinyvllm.device import Gpu
from tinyvllm.devices.emulator.build import Sanitizer
from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.errors import TinyvllmError

DEVICES = ("emulator", pytest.param("emulator as sm_80", marks=pytest.mark.slow), "cuda")


@functools.cache
def open_device(name: str) -> Gpu:
    """The device called ``name``; skips the test where there is none."""
    if name.startswith("emulator"):
        return EmulatorDevice(arch=80 if name.endswith("sm_80") else 90)
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
def device(request: pytest.FixtureRequest) -> Gpu:
    """Each device in turn; one object for the whole session, so that hypothesis may run a test many times on it."""
    return open_device(request.param)


@pytest.fixture(scope="session")
def mutant_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mutants are compiled: fresh, but for the emulator's runtime library, which takes seconds."""
    return add_runtimes(tmp_path_factory.mktemp("cache"), Sanitizer.NONE)


@pytest.fixture(scope="session")
def checked_mutant_cache(mutant_cache: Path) -> Path:
    """The same with the two sanitized runtimes."""
    return add_runtimes(mutant_cache, Sanitizer.RACE, Sanitizer.BOUNDS)
