"""What this machine has, and what tinyvllm will therefore use."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tinyvllm
from tinyvllm.devices.blas import blas_name, find_blas
from tinyvllm.devices.compile_cache import default_cache_dir, why_unwritable
from tinyvllm.devices.cuda import CudaProbe, find_driver, probe
from tinyvllm.devices.cuda.facts import DRIVER_LIBRARY
from tinyvllm.devices.emulator.build import find_compiler
from tinyvllm.errors import DeviceError
from tinyvllm.start.devices import choose_device

_CUDA_SUCCESS = 0


def findings() -> Iterator[tuple[str, str]]:
    """Subject and finding, one a line. Imports no accelerator library and allocates nothing on a device."""
    yield "tinyvllm", f"{tinyvllm.__version__} in {Path(tinyvllm.__file__).parent}"
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "machine", f"{platform.system()} {platform.machine()}, {_num_cores()} cores, {_memory()}"
    yield "NumPy", np.__version__
    yield "BLAS", _blas()
    yield "CPU threads", _threads()
    yield "kernel cache", _cache()
    yield "CUDA driver", _cuda_driver()
    cuda = probe()
    yield "NVRTC", cuda.nvrtc_version or _installed("nvidia-cuda-nvrtc")
    yield "cuda-bindings", _installed("cuda-bindings")
    yield "cupy", cuda.cupy_version or _installed("cupy-cuda13x")
    yield "cuBLASLt", cuda.cublaslt_version or "not found"
    compiler, no_compiler = _compiler()
    yield "C++ compiler", compiler or "none"
    yield "device cpu", "can be used"
    yield "device emulator", no_compiler or "can be used; it checks kernels and is slow"
    yield "device cuda", f"cannot be used: {'; '.join(cuda.problems)}" if cuda.problems else _size(cuda)
    chosen = choose_device("auto")
    yield "device auto", f"{chosen.name} ({chosen.reason})"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        size_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return "memory unknown"
    return f"{size_bytes / 2**30:.1f} GiB memory"


def _blas() -> str:
    """Name and version as NumPy was built with it, then core type and threads as the library itself says."""
    blas = find_blas()
    if blas is None:
        return f"{blas_name()}, core type and threads unknown"
    threads = f"{blas.num_threads} threads (OPENBLAS_NUM_THREADS)"
    return f"{blas_name()}, core type {blas.core_name} (OPENBLAS_CORETYPE), {threads}"


def _threads() -> str:
    """How many threads the CPU device gives to products."""
    blas = find_blas()
    if blas is None:
        return "as many as the BLAS takes by itself; num_threads cannot be set"
    if blas.num_threads == 1:
        return "1 for every product (num_threads sets another number)"
    return f"1 for small products, {blas.num_threads} for large ones (num_threads sets one number for all)"


def _cache() -> str:
    folder = default_cache_dir()
    reason = why_unwritable(folder)
    if reason is not None:
        return f"{folder} cannot be written ({reason}): kernels are compiled again each time; set XDG_CACHE_HOME"
    return f"{folder} can be written"


def _cuda_driver() -> str:
    driver = find_driver()
    if driver is None:
        return f"none ({DRIVER_LIBRARY} not found): no NVIDIA GPU can be used"
    version, count = ctypes.c_int(), ctypes.c_int()
    failed = driver.cuInit(0)
    if failed != _CUDA_SUCCESS or driver.cuDriverGetVersion(ctypes.byref(version)) != _CUDA_SUCCESS:
        return f"found, but it cannot be started (cuInit: error {failed})"
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        text = ctypes.create_string_buffer(256)
        driver.cuDeviceGetName(text, len(text), index)
        names.append(text.value.decode(errors="replace"))
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}, {', '.join(names) or 'no GPU'}"


def _installed(*distributions: str) -> str:
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{distribution} {importlib.metadata.version(distribution)}"
    return "not installed"


def _compiler() -> tuple[str | None, str | None]:
    """The C++ compiler that the emulator uses; or why it cannot be used."""
    try:
        return find_compiler().command, None
    except DeviceError as error:
        return None, f"cannot be used: {error}"


def _size(cuda: CudaProbe) -> str:
    free, total = (cuda.free_memory_bytes or 0) / 2**30, (cuda.memory_bytes or 0) / 2**30
    return f"can be used: {cuda.device_name}, sm_{cuda.arch}, {cuda.num_sms} SMs, {free:.1f} of {total:.1f} GiB free"
