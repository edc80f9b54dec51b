"""Seed-OSS (ByteDance 2025): Llama with biases on queries, keys and values, and on the output where it says so."""

from __future__ import annotations

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, no_windows
from tinyvllm.models.llama_family import Biases, LlamaFamily


class Model(LlamaFamily):
    """Biases by ``attention_bias``, ``attention_out_bias`` and ``mlp_bias``."""

    def __init__(self, config: ConfigReader) -> None:
        no_windows(config)
        super().__init__(
            config,
            Defaults(max_position_embeddings=524288, num_kv_heads=8, head_dim=128),
            biases=Biases(
                qkv=config.flag("attention_bias", True),
                output=config.flag("attention_out_bias", False),
                mlp=config.flag("mlp_bias", False),
            ),
        )
