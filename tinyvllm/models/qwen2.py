"""Qwen2 (Yang et al. 2024): Llama with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import Defaults, decoder_config, switched_sliding_windows

_DEFAULTS = Defaults(max_position_embeddings=32768, num_kv_heads=32)


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Qwen2 ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    reader.must_be_off("mlp_bias", "attention_out_bias")
    return decoder_config(reader, _DEFAULTS, has_qkv_bias=True, sliding_windows=switched_sliding_windows(reader))
