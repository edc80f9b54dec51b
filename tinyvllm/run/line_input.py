"""What somebody types, or pipes in: messages of one or several lines, with a history kept between sessions.

A line that ends in a backslash goes on in the next one; a message that begins with three double quotes goes on until a
line that ends with three.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from tinyvllm.devices.compile_cache import default_cache_dir
from tinyvllm.run.console import Console

_QUOTES = '"""'
_HISTORY_LINES = 1000


class LineInput:
    """Messages from standard input, until it ends.

    Args:
        console: where somebody who types reads.

    Attributes:
        is_terminal: somebody types; there are prompts then, and control-C drops what was typed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        # Either is None where the program was started with it closed.
        self.is_terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")  # a byte that is no UTF-8 costs that character, not the talk
        self._is_first = True

    def read(self) -> str | None:
        """The next message, its lines joined; None at the end of input.

        Raises:
            KeyboardInterrupt: control-C, where nobody types.
        """
        while True:
            try:
                return self._message()
            except EOFError:
                if self.is_terminal:
                    self._console.print()  # the next prompt of the shell gets a line of its own
                return None
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                self._console.print("\n(control-D or /exit ends)")

    def _message(self) -> str:
        line = self._line("> ")
        if line.lstrip().startswith(_QUOTES):
            return self._quoted(line.lstrip().removeprefix(_QUOTES))
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            try:
                line = self._line("... ")
            except EOFError:
                return "\n".join(lines)
        return "\n".join([*lines, line])

    def _quoted(self, line: str) -> str:
        lines = []
        while not line.rstrip().endswith(_QUOTES):
            lines.append(line)
            try:
                line = self._line("... ")
            except EOFError:
                return "\n".join(lines)
        return "\n".join([*lines, line.rstrip().removesuffix(_QUOTES)])

    def _line(self, prompt: str) -> str:
        if sys.stdin is None:
            raise EOFError
        # readline must know the prompt, or it would be overwritten when a line is edited.
        line = input(prompt if self.is_terminal else "")
        if self._is_first:
            line = line.removeprefix("\ufeff")  # with which some editors begin a file
        self._is_first = False
        return line


class History:
    """A context manager: lines of earlier sessions can be fetched with the arrow keys, and this one's are kept.

    Does nothing where Python has no readline, or the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Args: path: of the file; None: ``chat_history`` in the cache folder of tinyvllm."""
        self._path = path

    def __enter__(self) -> None:
        """Read the file."""
        with suppress(ImportError, OSError, RuntimeError):  # RuntimeError: no home
            import readline

            self._path = self._path or default_cache_dir() / "chat_history"
            readline.set_history_length(_HISTORY_LINES)
            if self._path.is_file():
                readline.read_history_file(self._path)

    def __exit__(self, *_: object) -> None:
        """Write the file, which only its owner may read."""
        if self._path is None:
            return
        with suppress(ImportError, OSError):
            import readline

            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            readline.write_history_file(self._path)
