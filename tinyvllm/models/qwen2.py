"""Qwen2 (Yang et al. 2024): Llama with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import decoder_config, layered_sliding_windows

# Qwen2Config's default where the key is absent.
_DEFAULT_NUM_KV_HEADS = 32


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Qwen2 ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    return decoder_config(
        reader,
        default_num_kv_heads=_DEFAULT_NUM_KV_HEADS,
        has_qkv_bias=True,
        sliding_windows=layered_sliding_windows(reader),
    )
