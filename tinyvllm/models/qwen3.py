"""Qwen3 (Yang et al. 2025): Qwen2 without biases, with each head of queries and keys normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import Defaults, decoder_config, switched_sliding_windows

_DEFAULTS = Defaults(max_position_embeddings=32768, num_kv_heads=32, head_dim=128, is_null_head_dim_derived=False)


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Qwen3 ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    reader.must_be_off("mlp_bias", "attention_out_bias")
    has_bias = reader.flag("attention_bias", False)
    return decoder_config(
        reader,
        _DEFAULTS,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_qk_norm=True,
        sliding_windows=switched_sliding_windows(reader),
    )
