"""The models, one file each, named as ``model_type`` in ``config.json``.

A model file says how its ``config.json`` reads as a :class:`~tinyvllm.models.decoder.DecoderConfig`; the decoder
itself, where it is really the same, is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from tinyvllm.models.architectures import check_architectures, check_model_type
from tinyvllm.models.decoder import DecoderConfig

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "ministral", "seed_oss", "internlm3", "iquestcoder")
"""Every ``model_type`` that is served."""


def read_config(raw: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """The decoder that a ``config.json`` describes.

    Args:
        raw: the parsed file.
        where: its name, for error messages.
    Raises:
        LoadError: the model is another than those served, a key is missing or wrong, or a value would change the
            result and is not supported.
    """
    model_type = check_model_type(raw, MODEL_TYPES, where)
    check_architectures(raw, where)
    read = cast(
        Callable[[Mapping[str, Any], str], DecoderConfig],
        import_module(f"tinyvllm.models.{model_type}").read_config,
    )
    return read(raw, where)
