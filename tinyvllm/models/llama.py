"""Llama (Touvron et al. 2023; Llama 3, 2024): grouped-query attention, RoPE, SwiGLU, RMS norm."""

from __future__ import annotations

from typing import ClassVar

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, no_windows
from tinyvllm.models.llama_family import Biases, LlamaFamily


class Model(LlamaFamily):
    """Biases by ``attention_bias`` and ``mlp_bias``."""

    defaults: ClassVar[Defaults] = Defaults(max_position_embeddings=2048)
    """For absent keys."""

    def __init__(self, config: ConfigReader) -> None:
        no_windows(config)
        has_bias = config.flag("attention_bias", False)
        super().__init__(
            config,
            self.defaults,
            biases=Biases(qkv=has_bias, output=has_bias, mlp=config.flag("mlp_bias", False)),
        )
