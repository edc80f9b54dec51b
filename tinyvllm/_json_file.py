"""JSON files of a checkpoint: one object, every name in it once, errors with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinyvllm._checkpoint_file import FIRST_BYTES, read_bounded, what_it_is
from tinyvllm._shown import shown
from tinyvllm.errors import LoadError

MAX_JSON_BYTES = 8 * 2**20
"""Of a configuration; the largest that are published have some hundred thousand bytes."""


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file in UTF-8, which may begin with a byte order mark.

    Args:
        path: of the file.
        max_bytes: a larger file is refused.
    Raises:
        LoadError: it is absent, cannot be read, is too large, or is not a JSON object; naming the line where there is
            one, and what the file is where it is something else altogether.
    """
    raw = read_bounded(path, max_bytes)
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        _refuse_another_kind(path, raw)
        raise LoadError(f"{path}:{error.lineno}: is not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError:
        raise LoadError(f"{path}: JSON is nested too deeply") from None
    except ValueError as error:  # not UTF-8, a name twice, an integer of thousands of digits
        _refuse_another_kind(path, raw)
        raise LoadError(f"{path}: is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path}: must hold a mapping, got {type(value).__name__}")
    return value


def _refuse_another_kind(path: Path, raw: bytes) -> None:
    what = what_it_is(raw[:FIRST_BYTES])
    if what is not None:
        raise LoadError(f"{path}: {what}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{shown(name)} is there twice; which one counts?")
            seen.add(name)
    return unique
