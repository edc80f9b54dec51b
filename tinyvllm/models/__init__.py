"""The models, one file each, named as ``model_type`` in ``config.json``.

A model file says how its ``config.json`` reads as a :class:`~tinyvllm.models.decoder.DecoderConfig`; the decoder
itself, where it is really the same, is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from tinyvllm.errors import LoadError
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.nearest import did_you_mean

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def read_config(raw: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """The decoder that a ``config.json`` describes.

    Args:
        raw: the parsed file.
        where: its name, for error messages.
    Raises:
        LoadError: the model type is unknown, a key is missing or wrong, or a value would change the result and
            is not supported.
    """
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        hint = did_you_mean(model_type, MODEL_TYPES) or ";"
        supported = ", ".join(MODEL_TYPES)
        raise LoadError(f"{where}: model_type {model_type!r} is not supported{hint} supported are {supported}")
    read = cast(
        Callable[[Mapping[str, Any], str], DecoderConfig],
        import_module(f"tinyvllm.models.{model_type}").read_config,
    )
    return read(raw, where)
