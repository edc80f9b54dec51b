"""Mistral (Jiang et al. 2023): Llama with a sliding window in every layer."""

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
)

_DEFAULTS = Defaults(max_position_embeddings=131072, num_kv_heads=8)


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Mistral ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    reader.must_be_off("attention_bias", "mlp_bias", "bias", "qkv_bias", "attention_out_bias")
    window = sliding_window(reader)
    # transformers ignores layer_types here and other engines obey them: only those that change nothing are taken.
    mixed = set(layer_types(reader, (FULL, SLIDING)) or ()) - {FULL if window is None else SLIDING}
    if mixed:
        raise reader.unsupported(
            "layer_types",
            mixed.pop(),
            "a Mistral model has the same attention in all layers; see model_type: ministral",
        )
    return decoder_config(reader, _DEFAULTS, sliding_windows=(window,) * num_hidden_layers(reader))
