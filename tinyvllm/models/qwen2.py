"""Qwen2 (Yang et al. 2024): Llama with biases on queries, keys and values."""

from __future__ import annotations

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, switched_sliding_windows
from tinyvllm.models.llama_family import Biases, LlamaFamily


class Model(LlamaFamily):
    """Windows where ``use_sliding_window`` is set."""

    def __init__(self, config: ConfigReader) -> None:
        super().__init__(
            config,
            Defaults(max_position_embeddings=32768, num_kv_heads=32),
            biases=Biases(qkv=True),
            windows=switched_sliding_windows(config),
        )
