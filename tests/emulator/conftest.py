from __future__ import annotations

from pathlib import Path

import pytest

from tinyvllm.devices.emulator import EmulatorDevice, Sanitizer

from .caches import add_runtimes


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests compile: fresh, but for the runtime library, which takes seconds and is the user's own."""
    return add_runtimes(tmp_path_factory.mktemp("cache"), Sanitizer.NONE)


@pytest.fixture(scope="session")
def checked_cache_dir(cache_dir: Path) -> Path:
    """The same with the two sanitized runtimes."""
    return add_runtimes(cache_dir, Sanitizer.RACE, Sanitizer.BOUNDS)


@pytest.fixture(scope="session")
def device(cache_dir: Path) -> EmulatorDevice:
    return EmulatorDevice(cache_dir=cache_dir)
