"""What ``model:`` means: the shipped checkpoint, a folder, or a name in the local Hugging Face cache.

Nothing is ever downloaded, and no code that came with a checkpoint (``auto_map``) is ever run.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinyvllm.errors import LoadError

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint folder in Hugging Face layout."""

    folder: Path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The mapping in a JSON file of the folder; None if there is no such file.

        Raises:
            LoadError: it is not a mapping in valid JSON, naming file and line.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise LoadError(f"{path}:{error.lineno}: is not valid JSON: {error.msg}") from error
        except (ValueError, OSError, RecursionError) as error:
            raise LoadError(f"{path}: cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise LoadError(f"{path}: must hold a mapping, got {type(value).__name__}")
        return value


def resolve_model(model: str, base: Path | None = None, cache: Path | None = None) -> ModelFiles:
    """The folder that ``model`` names.

    Args:
        model: ``"demo"``, a folder, or ``org/name``.
        base: what a relative folder is relative to; None: the current one.
        cache: of Hugging Face; None: where ``HF_HUB_CACHE`` or ``HF_HOME`` say, or ``~/.cache/huggingface/hub``.
    Raises:
        LoadError: there is no such folder, or it holds no ``config.json``; says what to put where.
    """
    if model == DEMO:
        return _checked(Path(str(files("tinyvllm"))) / "demo")
    folder = (base or Path.cwd()) / Path(model).expanduser()
    if folder.is_dir():
        return _checked(folder)
    is_hub_name = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not is_hub_name:
        raise LoadError(
            f"{folder}: there is no such folder; put a checkpoint there (config.json, tokenizer.json and "
            f"model.safetensors, as Hugging Face lays them out), or use model: {DEMO}"
        )
    return _checked(_snapshot(model, cache or _default_cache()))


def _checked(folder: Path) -> ModelFiles:
    if not (folder / "config.json").is_file():
        raise LoadError(f"{folder / 'config.json'}: is missing; a checkpoint folder needs it, in Hugging Face layout")
    return ModelFiles(folder)


def _default_cache() -> Path:
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"


def _snapshot(model: str, cache: Path) -> Path:
    """The snapshot that ``refs/main`` points to."""
    repository = cache / f"models--{model.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if reference.is_file():
        snapshot = repository / "snapshots" / reference.read_text(encoding="utf-8").strip()
        if snapshot.is_dir():
            return snapshot
    raise LoadError(
        f"model {model!r} is neither a folder here nor in the cache {cache}; tinyvllm never downloads: "
        f"fetch it with `hf download {model}`, or name a folder"
    )
