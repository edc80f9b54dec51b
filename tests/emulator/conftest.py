from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tinyvllm.devices.compile_cache import default_cache_dir
from tinyvllm.devices.emulator import EmulatorDevice, Sanitizer
from tinyvllm.devices.emulator.build import build_runtime, find_compiler


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests compile: fresh, but for the runtime library, which takes seconds and is the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "emulator").mkdir()
    shutil.copy(build_runtime(find_compiler(), default_cache_dir(), Sanitizer.NONE), folder / "emulator")
    return folder


@pytest.fixture(scope="session")
def checked_cache_dir(cache_dir: Path) -> Path:
    """The same with the two sanitized runtimes."""
    for sanitizer in (Sanitizer.RACE, Sanitizer.BOUNDS):
        shutil.copy(build_runtime(find_compiler(), default_cache_dir(), sanitizer), cache_dir / "emulator")
    return cache_dir


@pytest.fixture(scope="session")
def device(cache_dir: Path) -> EmulatorDevice:
    return EmulatorDevice(cache_dir=cache_dir)
