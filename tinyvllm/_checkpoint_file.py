"""Files of a checkpoint folder: opened with care, read up to a limit, and named for what they are where they are not
what they should be. Knows nothing about what is in a right one.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from tinyvllm._shown import shown
from tinyvllm.errors import LoadError

FIRST_BYTES = 512
"""How many bytes from the beginning of a file :func:`what_it_is` needs."""

_WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--", b"<body")
_HUB_ERRORS = (b"entry not found", b"repository not found", b"invalid username or password", b"access to model")
_LEADING = {
    b"version https://git-lfs": (
        "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or fetch it with `hf download`"
    ),
    b"PK\x03\x04": "is a zip archive (PyTorch's pickle files are such archives), which is never opened",
    b"GGUF": "is a GGUF file, which is not served; fetch the model in Hugging Face layout",
    b"\x1f\x8b": "is compressed with gzip; unpack it",
    b"(\xb5/\xfd": "is compressed with zstd; unpack it",
    b"\x89HDF\r\n": "is an HDF5 file, which is not served; fetch the model's safetensors files",
    b"\xff\xfe": "is text in UTF-16, expected UTF-8; save it again in that encoding",
    b"\xfe\xff": "is text in UTF-16, expected UTF-8; save it again in that encoding",
}


def what_it_is(first: bytes) -> str | None:
    """What a file is that is not what its name says: ``"is a Git LFS pointer, ..."`` with the remedy, or None.

    Args:
        first: the file's first bytes, up to ``FIRST_BYTES``.
    """
    if not first:
        return "is empty; the download is not complete, fetch it again"
    for leading, what in _LEADING.items():
        if first.startswith(leading):
            return what
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a Python pickle, which is never read, because loading one runs code from it"
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_WEB_PAGES):
        return "is a web page, not the file itself; fetch it with `hf download`, or with the page's download link"
    if text.startswith(_HUB_ERRORS):
        message = first[:80].decode("utf-8", "replace").strip()
        return f"is an answer of the Hugging Face hub, {shown(message)}, not the file itself; fetch it again"
    if len(first) > 8 and not any(first):
        return "begins with zeros only; the download is not complete, fetch it again"
    return None


def open_regular(path: Path) -> BinaryIO:
    """An unbuffered file for reading bytes, which is a regular one: no pipe, device or folder.

    Raises:
        LoadError: it is absent, is something else, or cannot be opened.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise LoadError(f"{_named(path)}: cannot be opened: {_why(path, error)}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise LoadError(f"{_named(path)}: is no regular file, but a folder, a pipe or a device; put a file there")
    return file


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """All bytes of a regular file of at most ``max_bytes``.

    Raises:
        LoadError: it is absent, is no regular file, cannot be read, or is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise LoadError(
                f"{_named(path)}: has {size} bytes, at most {max_bytes} are read of such a file; is it the right one?"
            )
        parts = []
        try:
            while size > 0 and (part := file.read(size)):
                parts.append(part)
                size -= len(part)
        except OSError as error:
            raise LoadError(f"{_named(path)}: cannot be read: {error.strerror}") from error
    return b"".join(parts)


def is_there(path: Path) -> bool:
    """Whether a folder has an entry of that name, be it damaged: a link that leads nowhere, a folder, a pipe."""
    return os.path.lexists(path)


def _named(path: Path) -> str:
    """The path, its last part escaped where a file gave it."""
    return str(path) if path.name.isprintable() and len(path.name) <= 255 else f"{path.parent}/{shown(path.name)}"


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"it is a link to {os.readlink(path)}, which is absent; the download is not complete, fetch it again"
    if isinstance(error, OSError):
        known = {
            errno.ENOENT: "there is no such file; is the download complete?",
            errno.ELOOP: "its links go in a circle",
        }
        return known.get(error.errno or 0) or str(error.strerror)
    return str(error)
