"""Phi-3 and Phi-4 (Microsoft 2024): Llama with packed weights, and in some sizes a head that is rotated in part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.layers import AttentionProjection, HeadSpec
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, num_hidden_layers, optional_window
from tinyvllm.models.llama_family import LlamaFamily
from tinyvllm.models.rotary import RopeDefaults, order_of_halves
from tinyvllm.models.weights import WeightReader


class Model(LlamaFamily):
    """A window in every layer by ``sliding_window``; ``partial_rotary_factor`` in the RoPE or beside it."""

    def __init__(self, config: ConfigReader) -> None:
        rope = RopeDefaults(
            original_max_position_embeddings=4096,
            types=("default", "longrope"),
            may_be_partial=True,
            rotated_share=config.number("partial_rotary_factor", 1.0, maximum=1),
        )
        super().__init__(
            config,
            Defaults(max_position_embeddings=4096, rms_norm_eps=1e-5, rope=rope),
            windows=(optional_window(config),) * num_hidden_layers(config),
        )

    def projection(self, weights: WeightReader, name: str, i: int) -> AttentionProjection:
        """``qkv_proj``, with the numbers of each query and key in the order in which pairs are rotated."""
        s = self.shape
        query, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        heads = np.arange(query + kv).reshape(-1, s.head_dim)
        order = heads[:, order_of_halves(s.head_dim, self.rotary.num_rotated(s.head_dim))].ravel()
        rows = np.concatenate([order, np.arange(query + kv, query + 2 * kv)])

        def in_order(weight: NDArray[Any]) -> NDArray[Any]:
            reordered: NDArray[Any] = weight[rows]
            return reordered

        qkv = weights.linear(
            {f"{name}.qkv_proj": query + 2 * kv},
            s.hidden_size,
            ["rms_norm_qkv_rope_append"],
            heads=HeadSpec(s.num_heads, s.num_kv_heads, s.head_dim, has_norms=False),
            change=in_order,
        )
        rotary = weights.rotary(self.rotary, s.head_dim)
        return AttentionProjection(qkv, rotary, s.num_heads, s.num_kv_heads, s.head_dim)

    def gate_up_names(self, name: str) -> Mapping[str, int]:
        """``gate_up_proj``, the gate first."""
        return {f"{name}.gate_up_proj": 2 * self.shape.intermediate_size}
