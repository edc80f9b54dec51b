"""From an address in a kernel library to the line of the ``.cu`` file, by the compiler's own line tables."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from tinyvllm.devices.compile_cache import INCLUDE_DIR


class _DlInfo(ctypes.Structure):
    _fields_: ClassVar = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def source_lines(return_address: int) -> tuple[str, ...]:
    """``file:line`` of the call that returns to this address, innermost inlined function first; empty if unknown."""
    info = _DlInfo()
    found = ctypes.CDLL(None).dladdr(ctypes.c_void_p(return_address), ctypes.byref(info))
    if not found or info.file is None or info.base is None:
        return ()
    return _resolve(info.file.decode(), return_address - 1 - info.base)


def kernel_line(return_address: int) -> str:
    """The innermost of ``source_lines`` that is not in the prelude, or a description of the address."""
    lines = source_lines(return_address)
    own = [line for line in lines if not line.startswith(str(INCLUDE_DIR))]
    return next(iter(own or lines), f"address {return_address:#x}")


@functools.cache
def _resolve(library: str, offset: int) -> tuple[str, ...]:
    tool = shutil.which("addr2line")
    if tool is None:
        return ()
    done = subprocess.run(  # noqa: S603  # binutils, on a library that we built
        [tool, "-i", "-e", library, hex(offset)], capture_output=True, text=True, check=False, timeout=30
    )
    lines = [line.split(" (")[0] for line in done.stdout.splitlines()]
    return tuple(str(Path(line)) for line in lines if not line.startswith("??") and not line.endswith(":?"))
