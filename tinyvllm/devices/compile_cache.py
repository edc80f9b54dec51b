"""Compiled kernels on disk, shared by processes that may compile the same thing at the same time.

An entry is named by the hash of everything it depends on, written under a temporary name and renamed, so a reader
sees a whole file or none. Where the folder cannot be written, what is built lives in a temporary folder as long as the
process. Knows nothing about compilers.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyvllm._terminal import warn
from tinyvllm.errors import CapacityError, KernelError

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)

INCLUDE_DIR = Path(__file__).resolve().parent / "include"
"""Where ``tinyvllm/prelude.cuh`` is found."""


_REMEDY = "set XDG_CACHE_HOME to a folder that can be written"


def default_cache_dir() -> Path:
    """``tinyvllm`` in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``).

    A temporary folder, with one line on standard error, where there is no such folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyvllm"
    except RuntimeError:
        note_unwritable("the cache", "this user has no home folder")
        return _temporary_dir()


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be kept in ``folder``, found by writing a file there; None if it can be written.

    The folder is made if it is not there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"tinyvllm")
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        return getattr(error, "strerror", None) or str(error)
    return None


@functools.cache
def note_unwritable(what: str, reason: str) -> None:
    """Say on standard error, once a process, that nothing can be kept in ``what``."""
    warn(f"{what} cannot be written ({reason}): what is found out now is found out again next time; {_REMEDY}")


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
    """The file that ``build(temporary_path)`` has written, now or earlier.

    It is ``path``, or lies in a temporary folder of this process if ``path`` cannot be written, which is said once on
    standard error. Two processes may build at once; the later rename wins, and both files are the same.

    Raises:
        CapacityError: the temporary folder cannot be written either.
    """
    if os.access(path, os.R_OK):
        return path
    try:
        return _built(path, build)
    except OSError as error:
        note_unwritable(f"the cache {path.parent}", error.strerror or str(error))
    try:
        spare = _temporary_dir() / path.parent.name / path.name
        return spare if spare.exists() else _built(spare, build)
    except OSError as error:
        raise CapacityError(
            f"{path}: neither the cache nor the temporary folder {tempfile.gettempdir()} can be written: "
            f"{error.strerror or error}; make room, or {_REMEDY}"
        ) from error


def _built(path: Path, build: Callable[[Path], None]) -> Path:
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


@functools.cache
def _temporary_dir() -> Path:
    """A folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="tinyvllm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
