"""JSON files of a checkpoint: one object, every name in it once, errors with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinyvllm.errors import LoadError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        LoadError: it is absent, cannot be read, or is not a JSON object; naming the line where there is one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror}; is the checkpoint complete?") from error
    except json.JSONDecodeError as error:
        raise LoadError(f"{path}:{error.lineno}: is not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError:
        raise LoadError(f"{path}: JSON is nested too deeply") from None
    except ValueError as error:  # not UTF-8, a name twice, an integer of thousands of digits
        raise LoadError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path}: must hold a mapping, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name!a} is there twice; which one counts?")
            seen.add(name)
    return unique
