"""Qwen3 (Yang et al. 2025): Qwen2 without biases, with each head of queries and keys normalised."""

from __future__ import annotations

from tinyvllm.layers import Norm
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, switched_sliding_windows
from tinyvllm.models.llama_family import Biases, LlamaFamily
from tinyvllm.models.weights import WeightReader


class Model(LlamaFamily):
    """Windows where ``use_sliding_window`` is set; biases by ``attention_bias``."""

    def __init__(self, config: ConfigReader) -> None:
        has_bias = config.flag("attention_bias", False)
        super().__init__(
            config,
            Defaults(max_position_embeddings=32768, num_kv_heads=32, head_dim=128, is_null_head_dim_derived=False),
            biases=Biases(qkv=has_bias, output=has_bias),
            windows=switched_sliding_windows(config),
        )

    def head_norms(self, weights: WeightReader, name: str) -> tuple[Norm | None, Norm | None]:
        """``q_norm`` and ``k_norm``, over each head."""
        q_norm, k_norm = (self.norm(weights, f"{name}.{each}_norm", self.shape.head_dim) for each in "qk")
        return q_norm, k_norm
