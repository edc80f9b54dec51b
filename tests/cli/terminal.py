"""A program in a pseudo-terminal, and what a person would see of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass

COMMAND = [sys.executable, "-m", "tinyvllm"]
_NUM_LINES = 50
_CONTROL = re.compile(r"\x1b\[(?P<private>\??)(?P<numbers>[\d;]*)(?P<letter>[A-Za-z])")


@dataclass(frozen=True)
class Session:
    """How a program ended, all that it wrote to the terminal, and what then stood on the screen."""

    returncode: int
    raw: str
    screen: str


def run_in_terminal(
    *arguments: str, columns: int = 80, stdout: int | None = None, env: Mapping[str, str] | None = None
) -> Session:
    """Run tinyvllm with a terminal of ``columns`` as its standard streams.

    Args:
        arguments: of the command line.
        columns: of the terminal.
        stdout: a descriptor in place of the terminal for standard output.
        env: further environment variables.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _NUM_LINES, columns, 0, 0))
    hidden = ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=slave,
        stdout=slave if stdout is None else stdout,
        stderr=slave,
        env={**environment, "TERM": "xterm-256color", **(env or {})},
        start_new_session=True,
    )
    os.close(slave)
    written = b""
    try:
        while piece := os.read(master, 65536):
            written += piece
    except OSError:  # the other end is closed
        pass
    os.close(master)
    raw = written.decode()
    return Session(process.wait(60), raw, rendered(raw, columns))


def rendered(raw: str, columns: int) -> str:
    """The lines that a terminal shows after it was sent ``raw``: cursor movements obeyed, long lines wrapped."""
    lines: list[list[str]] = [[]]
    row = column = position = 0
    while position < len(raw):
        control = _CONTROL.match(raw, position)
        if control is not None:
            position = control.end()
            number = int(control["numbers"] or 1) if control["numbers"].isdigit() or not control["numbers"] else 1
            match control["letter"]:
                case "A":
                    row = max(0, row - number)
                case "B":
                    row += number
                case "K":
                    lines[row] = [] if control["numbers"] == "2" else lines[row][:column]
                case "m" | "h" | "l":
                    pass
                case letter:
                    raise AssertionError(f"a terminal control that is not expected here: {letter}")
            continue
        character = raw[position]
        position += 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row += 1
        else:
            if column == columns:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append([])
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = character
            column += 1
        while len(lines) <= row:
            lines.append([])
    return "\n".join("".join(line).rstrip() for line in lines)
