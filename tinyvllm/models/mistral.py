"""Mistral (Jiang et al. 2023): Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import decoder_config

# MistralConfig's defaults when a key is absent; a null window means none.
_DEFAULT_WINDOW = 4096
_DEFAULT_NUM_KV_HEADS = 8


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Mistral ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    is_null = "sliding_window" in raw and raw["sliding_window"] is None
    window = None if is_null else reader.integer("sliding_window", _DEFAULT_WINDOW)
    return decoder_config(
        reader,
        default_num_kv_heads=_DEFAULT_NUM_KV_HEADS,
        sliding_windows=(window,) * reader.integer("num_hidden_layers"),
    )
