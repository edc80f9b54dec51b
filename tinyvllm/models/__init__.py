"""The models, one file each, named as ``model_type`` in ``config.json``: the file is the model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from tinyvllm.models.architectures import check_architectures, check_model_type
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.model import Model

MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "ministral", "seed_oss", "internlm3", "iquestcoder", "phi3", "granite",
    "olmo2", "smollm3", "gemma3_text",
)  # fmt: skip
"""Every ``model_type`` that is served."""


def read_config(raw: Mapping[str, Any], where: str = "config.json") -> Model:
    """The model that a ``config.json`` describes.

    Args:
        raw: the parsed file.
        where: its name, for error messages.
    Raises:
        LoadError: the model is another than those served, a key is missing or wrong, or a value would change the
            result and is not supported.
    """
    model_type = check_model_type(raw, MODEL_TYPES, where)
    check_architectures(raw, where)
    reader = ConfigReader(raw, where)
    model: Model = import_module(f"tinyvllm.models.{model_type}").Model(reader)
    reader.check_all_read(model_type)
    return model
