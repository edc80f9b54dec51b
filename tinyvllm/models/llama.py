"""Llama (Touvron et al. 2023; Llama 3, 2024): grouped-query attention, RoPE, SwiGLU, RMS norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import decoder_config


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Llama ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    has_bias = reader.flag("attention_bias", False)
    return decoder_config(
        reader,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=reader.flag("mlp_bias", False),
    )
