"""What ``model:`` stands for: a folder of files in Hugging Face layout. Nothing is ever downloaded or executed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvllm.errors import LoadError

DEMO = "demo"
CONFIG = "config.json"
_DEMO_FOLDER = Path(__file__).parent.parent / "demo"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9A-Za-z][\w.-]*")
_CONTENTS = "config.json, model.safetensors (or shards with their index) and tokenizer.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint's folder, which exists, and its JSON files.

    Whatever ``auto_map`` in ``config.json`` names is Python code that came with the checkpoint; it is never run.

    Attributes:
        folder: of the checkpoint.
    """

    folder: Path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file of the folder; None if there is no such file and it is not ``config.json``.

        Raises:
            LoadError: it cannot be read or is not valid JSON, naming the line; or there is no ``config.json``.
        """
        path = self.folder / name
        if name != CONFIG and not path.exists():
            return None
        return read_json_object(path)


def resolve_model(model: str, base: Path | None = None, cache: Path | None = None) -> ModelFiles:
    """The files that ``model`` stands for.

    Args:
        model: ``demo`` for the checkpoint that ships (``./demo`` for a folder of that name), a folder, or
            ``org/name`` for the newest snapshot in the local Hugging Face cache. A folder of that name wins.
        base: what a relative folder is relative to; None: the current directory.
        cache: the Hugging Face cache; None: where the environment says, as in :func:`hugging_face_cache`.
    Raises:
        LoadError: there is no such folder, saying what would have to be there or how to fetch it.
    """
    if model == DEMO:
        return ModelFiles(_DEMO_FOLDER)
    try:
        folder = (base or Path.cwd()) / Path(model).expanduser()
        if folder.is_dir():
            return ModelFiles(folder)
        is_file = folder.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, ~nobody
        raise LoadError(f"model: {ascii(model[:200])} is not the name of a folder: {error}") from error
    if is_file:
        raise LoadError(f"model: {folder} is a file; name the folder that holds {_CONTENTS}")
    if _HUB_NAME.fullmatch(model):
        return ModelFiles(_cached_snapshot(model, folder, cache or hugging_face_cache(os.environ)))
    raise LoadError(f"model: there is no folder {folder}; it must hold {_CONTENTS}")


def hugging_face_cache(environ: Mapping[str, str]) -> Path:
    """Where ``huggingface_hub`` keeps what it downloaded: ``HF_HUB_CACHE``, ``HUGGINGFACE_HUB_CACHE``, ``HF_HOME``
    and ``XDG_CACHE_HOME`` decide, in this order; ``~/.cache/huggingface/hub`` otherwise.
    """
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if environ.get(name):
            return Path(environ[name]).expanduser() / below
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        LoadError: it is absent, cannot be read, or is not a JSON object; naming the line.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror}; is the checkpoint complete?") from error
    except json.JSONDecodeError as error:
        raise LoadError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError:
        raise LoadError(f"{path}: JSON is nested too deeply") from None
    except ValueError as error:  # not UTF-8, a name twice, an integer of thousands of digits
        raise LoadError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names if len(set(names)) < len(names) else ():
        if names.count(name) > 1:
            raise ValueError(f"{ascii(name)} is there twice; which one counts?")
    return dict(pairs)


def _cached_snapshot(model: str, folder: Path, cache: Path) -> Path:
    """The snapshot that the branch ``main`` of ``org/name`` points to."""
    repository = cache / f"models--{model.replace('/', '--')}"
    fetch = f"fetch it with: hf download {model}"
    if not repository.is_dir():
        raise LoadError(f"model: {model} is neither a folder ({folder}) nor in the Hugging Face cache {cache}; {fetch}")
    reference = repository / "refs" / "main"
    try:
        commit = reference.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise LoadError(f"model: {model} is in the cache, but {reference} cannot be read; {fetch}") from error
    snapshot = repository / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise LoadError(f"model: {model} is in the cache, but its snapshot {ascii(commit[:80])} is not; {fetch}")
    return snapshot
