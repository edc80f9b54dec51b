"""Seed-OSS (ByteDance 2025): Llama with biases on queries, keys and values, and on the output where it says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import FULL, Defaults, decoder_config, layer_types

_DEFAULTS = Defaults(max_position_embeddings=524288, num_kv_heads=8, head_dim=128)


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a Seed-OSS ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    reader.must_be_off("bias", "qkv_bias")
    layer_types(reader, (FULL,))
    return decoder_config(
        reader,
        _DEFAULTS,
        has_qkv_bias=reader.flag("attention_bias", True),
        has_output_bias=reader.flag("attention_out_bias", False),
        has_mlp_bias=reader.flag("mlp_bias", False),
    )
