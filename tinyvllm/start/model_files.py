"""What ``model:`` means: the shipped checkpoint, a folder, or a name in the local Hugging Face cache.

Nothing is ever downloaded, and no code that came with a checkpoint (``auto_map``) is ever run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinyvllm._checkpoint_file import is_there, read_bounded
from tinyvllm._json_file import read_json_object
from tinyvllm._shown import printable, some
from tinyvllm.errors import LoadError

DEMO = "demo"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COMMIT = re.compile(r"\w[\w.-]*")
_MAX_REFERENCE_BYTES = 1000
_LAYOUT = "config.json, tokenizer.json and model.safetensors, as Hugging Face lays them out"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint folder in Hugging Face layout.

    Attributes:
        folder: it exists and holds ``config.json``.
    """

    folder: Path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The mapping in a JSON file of the folder; None if there is no such file.

        Raises:
            LoadError: it is there and no readable file, or not a mapping in valid JSON, naming file and line.
        """
        path = self.folder / name
        return read_json_object(path) if is_there(path) else None


def resolve_model(model: str, base: Path | None = None, cache: Path | None = None) -> ModelFiles:
    """The folder that ``model`` names.

    Args:
        model: ``demo`` for the checkpoint that ships (``./demo`` for a folder of that name), a folder, or
            ``org/name`` for what the branch ``main`` is in the local Hugging Face cache; a folder of that name wins.
        base: what a relative folder is relative to; None: the current one.
        cache: of Hugging Face; None: where the environment says, see :func:`hugging_face_cache`.
    Raises:
        LoadError: there is no such folder, or it holds no ``config.json``; says what to put where.
    """
    if model == DEMO:
        return _checked(Path(str(files("tinyvllm"))) / "demo")
    try:
        folder = (base or Path.cwd()) / Path(model).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, ~ of nobody
        raise LoadError(f"model {model[:200]!a} cannot be the name of a folder: {error}") from error
    if is_folder:
        return _checked(folder)
    if is_file:
        raise LoadError(f"{printable(str(folder))}: is a file; name the folder that holds {_LAYOUT}")
    if not _HUB_NAME.fullmatch(model):
        raise LoadError(f"{printable(str(folder))}: there is no such folder; put {_LAYOUT} there, or use model: {DEMO}")
    return _checked(_snapshot(model, folder, cache or hugging_face_cache(os.environ)))


def hugging_face_cache(environ: Mapping[str, str]) -> Path:
    """Where Hugging Face's tools keep what they fetched: ``HF_HUB_CACHE``, ``HUGGINGFACE_HUB_CACHE``, ``HF_HOME`` and
    ``XDG_CACHE_HOME`` decide, in this order; otherwise ``~/.cache/huggingface/hub``.

    Raises:
        LoadError: none of them is set, or one begins with ``~``, and there is no home folder.
    """
    try:
        return _hugging_face_cache(environ)
    except RuntimeError as error:
        remedy = "set HF_HUB_CACHE to the folder of the cache, or name the folder of the model"
        raise LoadError(f"the Hugging Face cache is in the home folder, and this user has none; {remedy}") from error


def _hugging_face_cache(environ: Mapping[str, str]) -> Path:
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if environ.get(name):
            return Path(environ[name]).expanduser() / below
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def _checked(folder: Path) -> ModelFiles:
    config = folder / "config.json"
    if is_there(config):
        return ModelFiles(folder)
    if is_there(folder / "adapter_config.json"):
        raise LoadError(
            f"{folder}: holds an adapter (adapter_config.json) and not a model; adapters are not served. Merge it into "
            "its base model with peft, model.merge_and_unload().save_pretrained(new_folder), and name that folder"
        )
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        raise LoadError(
            f"{folder}: holds {some(ggufs, 3)} and no config.json. GGUF files are not served; fetch the model that "
            "they were made from in Hugging Face layout"
        )
    raise LoadError(f"{config}: is missing; a checkpoint folder holds {_LAYOUT}")


def _snapshot(model: str, folder: Path, cache: Path) -> Path:
    """The snapshot that ``refs/main`` points to; without such a file, the only one there is."""
    fetch = f"tinyvllm never downloads: fetch it with `hf download {model}`, or name a folder"
    repository = cache / f"models--{model.replace('/', '--')}"
    try:
        if not repository.is_dir():
            raise LoadError(f"model {model!r} is neither a folder ({folder}) nor in the cache {cache}; {fetch}")
        reference, snapshots = repository / "refs" / "main", repository / "snapshots"
        if is_there(reference):
            commit = read_bounded(reference, _MAX_REFERENCE_BYTES).decode("utf-8", "replace").strip()
        else:
            names = sorted(path.name for path in snapshots.iterdir()) if snapshots.is_dir() else []
            if len(names) > 1:
                raise LoadError(
                    f"model {model!r} is in the cache in {len(names)} versions, and {reference} is missing, which says "
                    f"which of them counts; {fetch}, such as {snapshots / names[0]}"
                )
            commit = names[0] if names else ""
        snapshot = snapshots / commit
        if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
            raise LoadError(f"model {model!r} is in the cache, but {reference} leads to no snapshot; {fetch}")
    except OSError as error:
        raise LoadError(f"model {model!r}: the cache {cache} cannot be read: {error.strerror}") from error
    return snapshot
