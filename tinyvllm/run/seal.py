"""What a run reads, sealed: whether an input is the same as before, or the same with more lines at the end."""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tinyvllm._regular_file import kind_of
from tinyvllm._terminal import warn
from tinyvllm.errors import CapacityError, ConfigError
from tinyvllm.run.jobs import MAX_LINE_BYTES, line_of

_OWN_INPUT = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_PIECE_BYTES = 2**20
# How a file begins that is not lines of UTF-8: a UTF-32 mark before the UTF-16 mark that it begins with.
_OTHER_BEGINNINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32", "iconv -f UTF-32 -t UTF-8"),
    (codecs.BOM_UTF32_BE, "UTF-32", "iconv -f UTF-32 -t UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    (b"{\0", "UTF-16 without a mark", "iconv -f UTF-16LE -t UTF-8"),
    (b"\0{", "UTF-16 without a mark", "iconv -f UTF-16BE -t UTF-8"),
    (b"\x1f\x8b", "compressed by gzip", "gunzip"),
)


class SealedInput:
    """Lines of prompts that can be read again from the beginning, and a hash of them as they are now.

    What is added to the file after it was sealed is not read.

    Args:
        file: opened for reading; closed by :meth:`close`.
        name: for messages.
        may_grow: whether a run may go on when lines were added at the end.
    """

    def __init__(self, file: BinaryIO, name: str, *, may_grow: bool) -> None:
        self.name = name
        self._file = file
        self._may_grow = may_grow
        digest, self.num_bytes, self.num_lines, last = hashlib.sha256(), 0, 0, b"\n"
        file.seek(0)
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            self.num_bytes, last = self.num_bytes + len(piece), piece[-1:]
            self.num_lines += piece.count(b"\n")
        self.num_lines += last != b"\n"
        self._sha256 = digest.hexdigest()

    def as_json(self) -> dict[str, Any]:
        """What :meth:`continues` compares."""
        return {"num_bytes": self.num_bytes, "sha256": self._sha256}

    def continues(self, earlier: object) -> bool:
        """Whether this input is the one that ``earlier`` describes, or begins with it and has further lines."""
        if earlier == self.as_json():
            return True
        if not self._may_grow or not isinstance(earlier, Mapping):
            return False
        num_bytes = earlier.get("num_bytes")
        if not isinstance(num_bytes, int) or not 0 <= num_bytes < self.num_bytes:
            return False
        digest, last = hashlib.sha256(), b""
        self._file.seek(0)
        left = num_bytes
        while left and (piece := self._file.read(min(left, _PIECE_BYTES))):
            digest.update(piece)
            left, last = left - len(piece), piece[-1:]
        return digest.hexdigest() == earlier.get("sha256") and b"\n" in (last, self._file.read(1))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines, numbered from 0, one at a time; of a line longer than 16 MiB only the beginning.

        The mark that some programs write before UTF-8 is left out.

        Raises:
            ConfigError: the file has become shorter.
        """
        self._file.seek(0)
        left = self.num_bytes
        for index in range(self.num_lines):
            line = piece = self._piece(left)
            left -= len(piece)
            while left and not piece.endswith(b"\n"):
                piece = self._piece(left)
                left -= len(piece)
            yield index, line.removeprefix(codecs.BOM_UTF8) if index == 0 else line

    def _piece(self, num_left: int) -> bytes:
        piece = self._file.readline(min(MAX_LINE_BYTES, num_left))
        if not piece:
            raise ConfigError(f"{self.name} has become shorter while it was read; begin the run again")
        return piece

    def is_file(self, path: Path) -> bool:
        """Whether the lines are read from the file at ``path``."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SealedInput:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def seal_prompts(prompts: Sequence[str]) -> SealedInput:
    """The seal of prompts that are in the configuration."""
    return SealedInput(io.BytesIO(b"\n".join(map(line_of, prompts))), "run.prompts", may_grow=False)


def seal_file(path: Path) -> SealedInput:
    """The seal of a file, or of all that comes out of a pipe or socket, which is copied first.

    Args:
        path: of the file, or of a pipe; ``/dev/stdin`` may be a socket as well.
    Raises:
        ConfigError: it cannot be read, is a device, or is no lines of UTF-8.
        CapacityError: there is no room for the copy of a pipe.
    """
    is_own_input = str(path) in _OWN_INPUT
    name = "standard input" if is_own_input else path.name
    try:
        # Standard input by its descriptor: a socket has no name that can be opened.
        file = os.fdopen(os.dup(sys.__stdin__.fileno() if sys.__stdin__ else 0), "rb") if is_own_input else _open(path)
        sealed = SealedInput(_seekable(file, str(path)), name, may_grow=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"run.prompts_file: cannot read {path}: {reason}") from error
    _check_encoding(sealed, path)
    return sealed


def _open(path: Path) -> BinaryIO:
    if stat.S_ISFIFO(path.stat().st_mode) and not str(path).startswith(("/dev/fd/", "/proc/")):
        warn(f"waiting for a program that writes to the pipe {path}")
    return path.open("rb")


def _seekable(file: BinaryIO, name: str) -> BinaryIO:
    """``file`` itself if it can be read twice, else a copy of it in a temporary file."""
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    with file:
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(file.fileno())):
            raise OSError(0, f"it is {kind_of(mode)}, not a file or pipe")
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the sealed input
        try:
            shutil.copyfileobj(file, copy, _PIECE_BYTES)
            copy.flush()
        except OSError as error:
            copy.close()
            room = f"make room in {tempfile.gettempdir()} or set TMPDIR, or name a file"
            raise CapacityError(f"run.prompts_file: {name} cannot be copied: {error.strerror}; {room}") from error
        except BaseException:
            copy.close()
            raise
    return copy


def _check_encoding(sealed: SealedInput, path: Path) -> None:
    _, first = next(sealed.lines(), (0, b""))
    for beginning, name, command in _OTHER_BEGINNINGS:
        if first.startswith(beginning):
            sealed.close()
            raise ConfigError(f"run.prompts_file: {path}:1: is {name}; lines must be UTF-8: {command} makes it that")
