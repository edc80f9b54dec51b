"""The results of a run on disk, one JSON line each: appended as they come, and gone on with after an interruption.

A run may be killed at any moment. Every line is written whole, by one call; a torn last line is cut off when the
run goes on. What the run was begun with (the input as it was, model, sampling) is in ``<output>.run.json`` beside it,
and a run with something else is refused rather than mixed in.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tinyvllm._regular_file import open_regular, read_regular
from tinyvllm.errors import CapacityError, ConfigError
from tinyvllm.run.seal import SealedInput

try:
    import fcntl
except ImportError:  # not on Windows, where two runs on one file are not noticed
    fcntl = None  # type: ignore[assignment]

_BEGINNING = b'{"index": '  # of every result
_PIECE_BYTES = 2**16
_MAX_NOTE_BYTES = 2**20


class Journal:
    """Results so far, and the place for more. Locked while open; only the run that opened it writes.

    Args:
        path: of the output.
        seal: the input of this run.
        settings: whatever else must be the same for results to belong together.

    Raises:
        ConfigError: the output cannot be written, another run is writing it, it is no result file, or its results
            belong to another input or other settings.
    """

    def __init__(self, path: Path, seal: SealedInput, settings: Mapping[str, Any]) -> None:
        self._path = path
        try:
            self._file = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            remedy = "; leave output out to have results on standard output" if error.errno == errno.EINVAL else ""
            raise ConfigError(f"run.output: cannot write {path}: {error.strerror}{remedy}") from error
        self.num_done = self.num_errors = 0
        self._done = bytearray(seal.num_lines)  # by index: 1 where there is a result
        self._remedy = f"move {path.name} away to begin anew, or name another output"
        try:
            self._lock()
            if seal.is_file(path):
                raise ConfigError(f"run.output: {path} is also run.prompts_file; name another output")
            self._read(seal)
            self._check_begun(seal, settings)
        except BaseException:
            os.close(self._file)
            raise

    def is_done(self, index: int) -> bool:
        """Whether the file has a result of that index."""
        return bool(self._done[index])

    def append(self, result: Mapping[str, Any]) -> None:
        """Write one result, at once.

        Raises:
            CapacityError: the disk is full, or failed; nothing is lost, the run can go on later.
        """
        line = json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            remedy = "make room and start again: the run goes on where it stopped"
            raise CapacityError(f"{self._path}: cannot be written: {error.strerror}; {remedy}") from error
        self._note(result)

    def close(self) -> None:
        """Close the file, which unlocks it."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{self._path}: another run is writing this file; wait for it or name another") from error
        except OSError:
            return  # a file system without locks

    def _note(self, result: Mapping[str, Any]) -> None:
        self._done[result["index"]] = 1
        self.num_done += 1
        self.num_errors += "error" in result

    def _read(self, seal: SealedInput) -> None:
        """Take note of what is done, and cut a torn last line off."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, line in enumerate(_lines_of(file), 1):
                where = f"{self._path}:{number}"
                if not line.endswith(b"\n"):
                    if not _is_torn(line):
                        raise ConfigError(f"{where}: not a line of results; {self._remedy}")
                    break
                self._note(self._parse(line, where, seal))
                end += len(line)
        if end < os.fstat(self._file).st_size:
            os.ftruncate(self._file, end)

    def _parse(self, line: bytes, where: str, seal: SealedInput) -> dict[str, Any]:
        try:
            result = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not a line of results (not JSON); {self._remedy}") from error
        index = result.get("index") if isinstance(result, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise ConfigError(f"{where}: not a line of results (no index); {self._remedy}")
        if index >= seal.num_lines:
            got = f"a result of index {index}, but {seal.name} has {seal.num_lines} lines"
            raise ConfigError(f"{where}: {got}: it belongs to another input; {self._remedy}")
        if self._done[index]:
            raise ConfigError(f"{where}: a second result of index {index}; {self._remedy}")
        return {**result}

    def _check_begun(self, seal: SealedInput, settings: Mapping[str, Any]) -> None:
        """Refuse to mix results; then write down what they belong to."""
        real = self._path.resolve()  # /dev/stdout may be a file
        note = real.with_name(f"{real.name}.run.json")
        begun = _read_note(note) if self.num_done else None
        if begun is not None:
            if not seal.continues(begun.get("input")):
                raise ConfigError(f"{self._path}: {seal.name} has changed since this file was begun; {self._remedy}")
            for key, value in settings.items():
                if begun.get(key) != value:
                    got = f"was begun with {key} {json.dumps(begun.get(key))}, now it is {json.dumps(value)}"
                    raise ConfigError(f"{self._path}: {got}; {self._remedy}")
        fresh = note.with_name(f"{note.name}.{os.getpid()}.tmp")
        try:
            fresh.write_text(json.dumps({"input": seal.as_json(), **settings}, indent=1) + "\n", encoding="utf-8")
            os.replace(fresh, note)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise ConfigError(f"run.output: cannot write {note}: {error.strerror}") from error


def _lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file of results; of a line that does not begin like one only the beginning."""
    while line := file.readline(_PIECE_BYTES):
        if line.startswith(b"{"):
            pieces = [line]
            while not pieces[-1].endswith(b"\n") and (piece := file.readline(_PIECE_BYTES)):
                pieces.append(piece)
            line = b"".join(pieces)
        yield line


def _is_torn(line: bytes) -> bool:
    """Whether the last line of a file may be the beginning of a result, or zeros that a file system left there."""
    is_zeros = len(line) < _PIECE_BYTES and not line.strip(b"\0")
    return is_zeros or _BEGINNING.startswith(line[: len(_BEGINNING)])


def _read_note(note: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        read = json.loads(read_regular(note, _MAX_NOTE_BYTES))
        if isinstance(read, dict):
            return read
    return None  # deleted, or of another program: the indexes are all there is to go by
