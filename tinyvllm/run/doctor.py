"""What this machine has, and what tinyvllm will therefore use."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tinyvllm
from tinyvllm.devices.cuda import CudaProbe, probe
from tinyvllm.devices.emulator.build import find_compiler
from tinyvllm.engine.devices import choose_device
from tinyvllm.errors import DeviceError

_CUDA_SUCCESS = 0


def findings() -> Iterator[tuple[str, str]]:
    """Subject and finding, one a line. Imports no accelerator library and allocates nothing on a device."""
    yield "tinyvllm", f"{tinyvllm.__version__} in {Path(tinyvllm.__file__).parent}"
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "machine", f"{platform.system()} {platform.machine()}, {_num_cores()} cores, {_memory()}"
    yield "NumPy", np.__version__
    yield "BLAS", _blas()
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
    build = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    text = f"{build.get('name', '?')} {build.get('version', '?')}"
    library = _openblas()
    if library is None:
        return f"{text}, core type and threads unknown"
    core = _call(library, "get_corename", ctypes.c_char_p)
    threads = _call(library, "get_num_threads", ctypes.c_int)
    core_name = core.decode() if isinstance(core, bytes) else "unknown"
    return f"{text}, core type {core_name} (OPENBLAS_CORETYPE), {threads} threads (OPENBLAS_NUM_THREADS)"


def _openblas() -> ctypes.CDLL | None:
    """The OpenBLAS that came with NumPy, already loaded; None if NumPy has another BLAS."""
    folder = Path(np.__file__).parent
    for path in [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    return None


def _call(library: ctypes.CDLL, name: str, result: type[ctypes.c_char_p] | type[ctypes.c_int]) -> object:
    for pattern in ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}"):
        function = getattr(library, pattern.format(name), None)
        if function is not None:
            function.restype = result
            return function()
    return "unknown"


def _cuda_driver() -> str:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"none ({name} not found): no NVIDIA GPU can be used"
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
