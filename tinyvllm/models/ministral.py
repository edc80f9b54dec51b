"""Ministral (Mistral AI 2024): Mistral with a sliding window in the layers that ``layer_types`` names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import (
    FULL,
    SLIDING,
    Defaults,
    decoder_config,
    layer_types,
    num_hidden_layers,
    sliding_window,
    windows_of,
)

_DEFAULTS = Defaults(max_position_embeddings=131072, num_kv_heads=8)


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Ministral ``config.json`` describes; without ``layer_types`` every layer has the window.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    reader.must_be_off("attention_bias", "mlp_bias", "bias", "qkv_bias", "attention_out_bias")
    window = sliding_window(reader)
    types = layer_types(reader, (FULL, SLIDING))
    if types is None:
        windows: tuple[int | None, ...] = (window,) * num_hidden_layers(reader)
    else:
        windows = windows_of(reader, types, window, "set sliding_window")
    return decoder_config(reader, _DEFAULTS, sliding_windows=windows)
