"""Qwen3 (Yang et al. 2025): Qwen2 without biases, with each head of queries and keys normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import decoder_config, layered_sliding_windows

_DEFAULT_HEAD_DIM = 128
_DEFAULT_NUM_KV_HEADS = 32  # the configuration class's default where the key is absent


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Qwen3 ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    has_bias = reader.flag("attention_bias", False)
    return decoder_config(
        reader,
        default_head_dim=_DEFAULT_HEAD_DIM,
        default_num_kv_heads=_DEFAULT_NUM_KV_HEADS,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_qk_norm=True,
        sliding_windows=layered_sliding_windows(reader),
    )
