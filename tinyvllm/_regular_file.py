"""Open what must be a file on a disk. Whether it is one is asked after opening, so it cannot be exchanged between."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(mode: int) -> str:
    """``"a file"``, ``"a pipe"`` and so on, from the mode that ``os.stat`` gives."""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a file")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a regular file, opened with ``flags``; with ``os.O_CREAT`` it is made if it is not there.

    Raises:
        OSError: it cannot be opened, or is a device, pipe, socket or folder. Never waits for another process.
    """
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0), 0o644)
    except ValueError as error:  # a name with a NUL
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {kind_of(mode)}, not a file", str(path))
    return descriptor


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The contents of a regular file.

    Raises:
        OSError: as for :func:`open_regular`, or the file has more than ``max_bytes``.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        contents = file.read(max_bytes + 1)
    if len(contents) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes", str(path))
    return contents
