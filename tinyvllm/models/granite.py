"""Granite (IBM 2024): Llama with four multipliers, of embeddings, attention scores, residuals and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.layers import Linear, Norm
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, no_windows
from tinyvllm.models.llama_family import Biases, LlamaFamily
from tinyvllm.models.model import AttentionLayer
from tinyvllm.models.weights import Change, WeightReader


class Model(LlamaFamily):
    """Biases by ``attention_bias`` and ``mlp_bias``.

    The multipliers of residuals and logits are in the weights: a device rounds the products to bfloat16 once more.
    """

    def __init__(self, config: ConfigReader) -> None:
        no_windows(config)
        has_bias = config.flag("attention_bias", False)
        self._of_embeddings = config.number("embedding_multiplier", 1.0)
        self._of_scores = config.number("attention_multiplier", 1.0)
        self._of_residuals = config.number("residual_multiplier", 1.0)
        self._of_logits = 1 / config.number("logits_scaling", 1.0)
        super().__init__(
            config,
            Defaults(max_position_embeddings=2048),
            biases=Biases(qkv=has_bias, output=has_bias, mlp=config.flag("mlp_bias", False)),
        )

    def embedding_scale(self, dtype: np.dtype[Any]) -> float:
        """``embedding_multiplier``."""
        return self._of_embeddings

    def attention(self, i: int) -> AttentionLayer:
        """Scores are multiplied by ``attention_multiplier``, not by ``1 / sqrt(D)``."""
        return replace(super().attention(i), scale=self._of_scores)

    def to_stream(self, weights: WeightReader, name: str, in_features: int, *, has_bias: bool) -> Linear:
        """With ``residual_multiplier`` in weight and bias."""
        change = multiplied_by(self._of_residuals)
        out_features = {name: self.shape.hidden_size}
        return weights.linear(out_features, in_features, ["linear_residual"], has_bias=has_bias, change=change)

    def final_norm(self, weights: WeightReader) -> Norm:
        """With ``logits_scaling`` in the weight."""
        return self.norm(weights, "model.norm", change=multiplied_by(self._of_logits))


def multiplied_by(factor: float) -> Change:
    """A weight times a factor."""

    def multiplied(weight: NDArray[Any]) -> NDArray[Any]:
        return weight * np.float32(factor)

    return multiplied
