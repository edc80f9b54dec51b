"""Compiled kernels on disk, shared by processes that may compile the same thing at the same time.

An entry is named by the hash of everything it depends on, written under a temporary name and renamed, so a reader
sees a whole file or none. Knows nothing about compilers.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyvllm.errors import KernelError

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)

INCLUDE_DIR = Path(__file__).resolve().parent.parent / "kernels" / "include"
"""Where ``tinyvllm/prelude.cuh`` is found."""


def default_cache_dir() -> Path:
    """``tinyvllm`` in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyvllm"


def read_sources(source: Path, include_dirs: Sequence[Path]) -> dict[Path, bytes]:
    """The file and all that it includes, directly or not, with their contents; the file itself first.

    An include that is found nowhere is left out: the compiler will say so better.

    Raises:
        KernelError: ``source`` cannot be read.
    """
    found: dict[Path, bytes] = {}
    pending = [source]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        try:
            found[path] = path.read_bytes()
        except OSError as error:
            raise KernelError(f"{path}: the kernel source cannot be read: {error.strerror}") from error
        for name in _INCLUDE.findall(found[path]):
            candidates = [folder / name.decode() for folder in (path.parent, *include_dirs)]
            pending += [candidate for candidate in candidates if candidate.is_file()][:1]
    return found


def key_of(*parts: bytes | str) -> str:
    """A name for what is built from exactly these parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def cached(path: Path, build: Callable[[Path], None]) -> Path:
    """``path``, which ``build(temporary_path)`` has written if it was not there.

    Two processes may build at once; the later rename wins, and both files are the same.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:16]}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        build(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
