"""Folders for compiled kernels that begin with what takes seconds to compile: the emulator's runtime libraries."""

from __future__ import annotations

import shutil
from pathlib import Path

from tinyvllm.devices.compile_cache import default_cache_dir
from tinyvllm.devices.emulator import Sanitizer
from tinyvllm.devices.emulator.build import build_runtime, find_compiler


def add_runtimes(cache_dir: Path, *sanitizers: Sanitizer) -> Path:
    """``cache_dir`` with the runtime library for each of these, the user's own; the folder."""
    (cache_dir / "emulator").mkdir(exist_ok=True)
    for sanitizer in sanitizers:
        shutil.copy(build_runtime(find_compiler(), default_cache_dir(), sanitizer), cache_dir / "emulator")
    return cache_dir
