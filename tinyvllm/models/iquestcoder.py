"""IQuest-Coder (IQuest Research 2026): Llama with other defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import FULL, Defaults, decoder_config, layer_types

_DEFAULTS = Defaults(max_position_embeddings=131072, num_kv_heads=8, head_dim=128, rms_norm_eps=1e-5)


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that an IQuest-Coder ``config.json`` describes.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    reader.must_be_off("use_sliding_window", "bias", "qkv_bias", "attention_out_bias")
    layer_types(reader, (FULL,))
    has_bias = reader.flag("attention_bias", False)
    return decoder_config(
        reader,
        _DEFAULTS,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=reader.flag("mlp_bias", False),
    )
