"""Standard input, output and error as files that may be closed, full, or in an encoding that lacks a character."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from tinyvllm.errors import CapacityError, ConfigError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_NUM_STANDARD = 3  # descriptors 0, 1 and 2


class ClosedOutput(io.TextIOBase):
    """Stands in for a standard output that was closed before the program began: the first write says so."""

    encoding = "utf-8"

    def writable(self) -> bool:
        """It is a place for output, if a closed one."""
        return True

    def write(self, text: str) -> NoReturn:
        """Refuse, even where ``text`` is empty.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("standard output is closed; send it to a file or another program, or to /dev/null")


class StandardOutput(io.FileIO):
    """Descriptor 1, whose failures are errors of ours, except that of a reader who has gone."""

    def write(self, data: Buffer) -> int:
        """Write what fits.

        Raises:
            CapacityError: the disk is full, or failed.
            BrokenPipeError: nobody reads any more.
        """
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as error:
            remedy = "make room, or send it elsewhere"
            raise CapacityError(f"standard output cannot be written: {error.strerror}; {remedy}") from error


def prepare() -> None:
    """Give each standard stream an object and a descriptor, and let output show every character in some way."""
    for descriptor in range(_NUM_STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor, so this one: a file that is opened later must not become standard output.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - open as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = ClosedOutput()
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(StandardOutput(sys.stdout.fileno(), "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=sys.stdout.line_buffering or sys.stdout.write_through,
        )


def give_up() -> None:
    """Send to nowhere what a stream holds and cannot write: Python tries again when it ends, and would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, CapacityError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def say(text: str) -> None:
    """A line on standard error; nothing where it cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)
        sys.stderr.flush()
