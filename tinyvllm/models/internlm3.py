"""InternLM3 (Shanghai AI Laboratory 2025): Llama, with names of its own for the biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyvllm.errors import LoadError
from tinyvllm.models.config_reader import ConfigReader, as_json
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.hf_config import FULL, Defaults, decoder_config, layer_types

_DEFAULTS = Defaults(max_position_embeddings=32768, num_kv_heads=2, head_dim=128, rms_norm_eps=1e-5)


def read_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that an InternLM3 ``config.json`` describes: ``qkv_bias`` and ``bias``, or Llama's names for them.

    Raises:
        LoadError: a key is missing, wrong, or asks for what is not supported.
    """
    reader = ConfigReader(raw, where)
    reader.must_be_off("attention_out_bias")
    layer_types(reader, (FULL,))
    qkv, mlp = (own if own in raw else llamas for own, llamas in (("qkv_bias", "attention_bias"), ("bias", "mlp_bias")))
    has_bias, has_mlp_bias = reader.flag(qkv, False), reader.flag(mlp, False)
    if has_bias != has_mlp_bias:
        raise LoadError(
            f"{where}: {qkv} = {as_json(has_bias)} and {mlp} = {as_json(has_mlp_bias)} differ; "
            "only models in which all layers have biases or none has are served"
        )
    return decoder_config(reader, _DEFAULTS, has_qkv_bias=has_bias, has_output_bias=has_bias, has_mlp_bias=has_mlp_bias)
