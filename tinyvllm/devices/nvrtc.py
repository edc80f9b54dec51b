"""Compiles a ``.cu`` source to a cubin for one architecture with NVRTC; needs neither a GPU nor a driver.

``cuda.bindings`` and the NVRTC library are imported on first use. Knows nothing about loading or launching.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyvllm.devices.compile_cache import INCLUDE_DIR, cached, default_cache_dir, key_of, read_sources
from tinyvllm.errors import DeviceError, KernelError

ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
"""What every kernel must compile for."""

_FUNCTION = re.compile(r"Compiling entry function '(?P<name>\w+)'")
_SPILLS = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(?P<bytes>\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class KernelUsage:
    """What the compiler says of one kernel."""

    name: str
    registers: int
    static_shared_bytes: int
    stack_bytes: int
    spill_bytes: int
    """Stores and loads of registers for which there was no room; zero in a good kernel."""


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code for one architecture, and what its kernels use."""

    code: bytes
    arch: str
    usage: tuple[KernelUsage, ...]


def compile_cubin(
    source: Path,
    arch: str,
    defines: Mapping[str, str | int] | None = None,
    options: Sequence[str] = (),
    cache_dir: Path | None = None,
) -> Cubin:
    """The cubin of ``source`` for ``sm_<arch>`` (such as ``90a``), from the cache where it can be.

    Args:
        source: a file that includes ``tinyvllm/prelude.cuh``.
        arch: one of ``ARCHITECTURES``, or another that NVRTC knows.
        defines: preprocessor macros.
        options: further NVRTC options, such as ``--use_fast_math``.
        cache_dir: where cubins are kept; the user's cache folder by default.

    Raises:
        DeviceError: NVRTC is not installed.
        KernelError: it refuses the source; with its messages.
    """
    nvrtc = _load_nvrtc()
    flags = [
        f"--gpu-architecture=sm_{arch}",
        "--std=c++17",
        f"--include-path={INCLUDE_DIR}",
        "--ptxas-options=-v",
        "--generate-line-info",
        *(f"--define-macro={name}={value}" for name, value in sorted((defines or {}).items())),
        *options,
    ]
    sources = read_sources(source, [INCLUDE_DIR])
    _, major, minor = nvrtc.nvrtcVersion()
    contents = [part for path, data in sources.items() for part in (path.name, data)]
    # The include folder is named in the options and says nothing about the result.
    described = " ".join(flag for flag in flags if not flag.startswith("--include-path"))
    key = key_of(described, f"nvrtc {major}.{minor}", str(source), *contents)
    path = (cache_dir or default_cache_dir()) / "cubin" / f"{source.stem}-{key[:32]}.cubin"
    return _read(cached(path, lambda target: _write(target, *_compile(nvrtc, source, sources[source], flags), arch)))


def _load_nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise DeviceError(f"cuda.bindings cannot be imported ({error}); pip install 'tinyvllm[cuda]'") from error
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        raise DeviceError(f"the NVRTC library cannot be loaded ({error}); pip install 'tinyvllm[cuda]'") from error
    return nvrtc


def _compile(nvrtc: Any, source: Path, text: bytes, flags: Sequence[str]) -> tuple[bytes, str]:
    """Machine code and log."""
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(text, str(source).encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        log = b" " * _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
        messages = log.rstrip(b"\0 ").decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"{source}: NVRTC does not compile it for {flags[0].rpartition('=')[2]}:\n{messages}")
        code = b" " * _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
        return code, messages
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise DeviceError(f"NVRTC failed: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return values[0] if values else None


def read_usage(log: str) -> tuple[KernelUsage, ...]:
    """What ``--ptxas-options=-v`` has printed about each kernel."""
    parts = _FUNCTION.split(log)
    usage = []
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        spills, used, shared = _SPILLS.search(text), _USED.search(text), _SHARED.search(text)
        usage.append(
            KernelUsage(
                name=name,
                registers=int(used["registers"]) if used else 0,
                static_shared_bytes=int(shared["bytes"]) if shared else 0,
                stack_bytes=int(spills["stack"]) if spills else 0,
                spill_bytes=int(spills["stores"]) + int(spills["loads"]) if spills else 0,
            )
        )
    return tuple(usage)


def _write(target: Path, code: bytes, log: str, arch: str) -> None:
    header = json.dumps({"arch": arch, "usage": [asdict(usage) for usage in read_usage(log)]})
    target.write_bytes(header.encode() + b"\n" + code)


def _read(path: Path) -> Cubin:
    header, _, code = path.read_bytes().partition(b"\n")
    described = json.loads(header)
    return Cubin(code, described["arch"], tuple(KernelUsage(**usage) for usage in described["usage"]))
