"""The loader ``safetensors``: one file or shards with an index, read with ``pread``.

The safetensors library maps files into memory, where a file that is cut short while in use kills the process.
Here every byte is asked for and counted. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tinyvllm._checkpoint_file import FIRST_BYTES, open_regular
from tinyvllm._shown import shown, some
from tinyvllm.plugin import Checkpoint, Loader, LoadError, OpenCall, Plugin, PluginContext, TensorMeta, hookimpl
from tinyvllm_loaders.header import LENGTH_BYTES, Entry, header_size, parse_header
from tinyvllm_loaders.layout import find_files
from tinyvllm_loaders.names import hint_about

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
}
# Linux reads at most 2 GiB at once, macOS refuses more.
_MAX_READ_BYTES = 2**30
# Buffers that old checkpoints carry and every implementation computes for itself.
_HARMLESS = re.compile(r"(^|\.)rotary_emb\.inv_freq$")


class SafetensorsLoader:
    """Opens folders with ``model.safetensors``, or with shards and ``model.safetensors.index.json``."""

    def __init__(self, context: PluginContext) -> None:
        """Nothing of the context is needed."""

    def open(self, call: OpenCall) -> Checkpoint:
        """The checkpoint at ``call.path``, which holds every expected tensor with its shape."""
        return SafetensorsCheckpoint(call.path, call.expected)


class SafetensorsCheckpoint:
    """One or several safetensors files, all their headers checked, as one checkpoint.

    Attributes:
        unexpected: names of stored tensors that the model does not use, in order; well-known harmless ones left out.
    """

    def __init__(self, folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Open every file of ``folder`` and check that it holds what is ``expected``.

        Raises:
            LoadError: naming the file, or all the tensors that are missing or have another shape.
        """
        self._files: list[SafetensorsFile] = []
        self._homes: dict[str, SafetensorsFile] = {}
        try:
            found = find_files(folder)
            self._files.extend(SafetensorsFile(path) for path in found.paths)
            self._homes = found.homes({file.path.name: file for file in self._files}, expected.keys())
            self._check(folder, expected)
        except BaseException:
            self.close()
            raise
        self.unexpected = tuple(
            name for name in sorted(self._homes) if name not in expected and not _HARMLESS.search(name)
        )

    def names(self) -> Iterable[str]:
        """Names of all stored tensors."""
        return self._homes.keys()

    def meta(self, name: str) -> TensorMeta:
        """Shape and dtype of one tensor."""
        entry = self._home(name).entries[name]
        return TensorMeta(entry.shape, entry.dtype)

    def read(self, name: str) -> NDArray[Any]:
        """The tensor in a fresh array of its stored dtype; its bytes are copied nowhere else.

        Raises:
            LoadError: the dtype is none of ``DTYPES``; or the file ends before the tensor does.
        """
        return self._home(name).read(name)

    def close(self) -> None:
        """Close the files; closing twice is no error."""
        for file in self._files:
            file.close()

    def __enter__(self) -> SafetensorsCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _home(self, name: str) -> SafetensorsFile:
        if name not in self._homes:
            raise LoadError(f"{self._files[0].path.parent}: the checkpoint has no tensor {shown(name)}")
        return self._homes[name]

    def _check(self, folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Everything that is wrong with the expected tensors, in one error."""
        missing = [name for name in expected if name not in self._homes]
        problems = []
        if missing:
            hint = hint_about(missing, self._homes.keys())
            why = "" if hint is None else f" ({hint})"
            problems.append(f"missing {_count(missing, 'tensor')}: {some(missing)}{why}")
        metas = {name: self.meta(name) for name in expected if name in self._homes}
        wrong = [
            f"{name} is {list(meta.shape)}, expected {list(expected[name])}"
            for name, meta in metas.items()
            if meta.shape != tuple(expected[name])
        ]
        if wrong:
            problems.append(f"wrong shape of {_count(wrong, 'tensor')}: {_some_lines(wrong)}")
        unreadable = [f"{name} is {meta.dtype}" for name, meta in metas.items() if meta.dtype not in DTYPES]
        if unreadable:
            problems.append(
                f"unsupported dtype of {_count(unreadable, 'tensor')}: {_some_lines(unreadable)}, "
                f"supported are {', '.join(DTYPES)}"
            )
        if problems:
            raise LoadError(f"{folder}: the checkpoint does not fit config.json: {'; '.join(problems)}")


class SafetensorsFile:
    """One open file: its header, and reading.

    Attributes:
        path: of the file.
        entries: tensor name to where and what it is.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check its header.

        Raises:
            LoadError: there is no such regular file, it cannot be read, or its header is wrong.
        """
        self.path = path
        self._file = open_regular(path)
        try:
            size = os.fstat(self._file.fileno()).st_size
            first = self._bytes(0, min(size, FIRST_BYTES))
            header_bytes = header_size(first.tobytes(), size, str(path))
            self._data_start = LENGTH_BYTES + header_bytes
            header = self._bytes(LENGTH_BYTES, header_bytes).tobytes()
            self.entries: Mapping[str, Entry] = parse_header(header, size - self._data_start, str(path))
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; see :meth:`SafetensorsCheckpoint.read`."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise LoadError(
                f"{self.path}: tensor {shown(name)} has dtype {entry.dtype}, supported are {', '.join(DTYPES)}"
            )
        raw = self._bytes(self._data_start + entry.start, entry.end - entry.start)
        return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def close(self) -> None:
        """Close the file; closing twice is no error."""
        self._file.close()

    def _bytes(self, offset: int, size: int) -> NDArray[np.uint8]:
        if self._file.closed:
            raise LoadError(f"{self.path}: the checkpoint is closed")
        buffer = np.empty(size, np.uint8)
        view, done = memoryview(buffer.data), 0
        while done < size:
            try:
                got = os.preadv(self._file.fileno(), [view[done : done + _MAX_READ_BYTES]], offset + done)
            except OSError as error:
                raise LoadError(f"{self.path}: cannot be read at byte {offset + done}: {error.strerror}") from error
            if got == 0:
                raise LoadError(
                    f"{self.path}: ends at byte {offset + done}, expected {size - done} more; "
                    "it was cut short while in use, fetch it again"
                )
            done += got
        return buffer


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _some_lines(items: list[str], limit: int = 10) -> str:
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


@hookimpl
def register_loaders() -> list[Plugin[Loader]]:
    """The plugin ``safetensors``."""
    return [Plugin("safetensors", SafetensorsLoader, description="one safetensors file or shards, strictly checked")]
