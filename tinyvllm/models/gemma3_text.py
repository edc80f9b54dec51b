"""Gemma 3 (Google 2025), the language model: norms before and after each block, GELU, a window in most layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyvllm.device import Tensor
from tinyvllm.layers import AttentionProjection, HeadSpec, Linear, Norm
from tinyvllm.models.blocks import GatedActivation, Heads, NormedSum
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import (
    FULL,
    SLIDING,
    Defaults,
    layer_types,
    num_hidden_layers,
    sliding_window,
    windows_of,
)
from tinyvllm.models.model import AttentionLayer, Block, BlockContext, BoundBlock, LayerStep
from tinyvllm.models.model import Model as AnyModel
from tinyvllm.models.rotary import RopeDefaults, RotaryConfig, rotary_within
from tinyvllm.models.weights import WeightReader


class Model(AnyModel):
    """Layers with a window, by ``layer_types`` or all but each sixth, have a RoPE of their own.

    A norm multiplies by one more than its weight. The sum is made when the weight is loaded, so a device rounds it to
    bfloat16, whereas transformers keeps it in float32.
    """

    def __init__(self, config: ConfigReader) -> None:
        config.activation("hidden_activation", ("gelu_pytorch_tanh",))
        config.ignore("hidden_act", "_sliding_window_pattern")  # as the configuration class does
        self._types = layer_types(config, (FULL, SLIDING)) or _types_by_pattern(config)
        self._windows = windows_of(config, self._types, sliding_window(config), "set sliding_window")
        self._scale = config.number("query_pre_attn_scalar", 256.0) ** -0.5
        self._has_bias = config.flag("attention_bias", False)
        defaults = Defaults(
            max_position_embeddings=131072,
            num_kv_heads=4,
            head_dim=256,
            is_null_head_dim_derived=False,
            has_tied_embeddings=True,
            rope=RopeDefaults(theta=1000000.0),
        )
        super().__init__(config, defaults)

    def read_rotary(
        self, config: ConfigReader, head_dim: int, max_position_embeddings: int, rope: RopeDefaults
    ) -> RotaryConfig:
        """That of the layers without a window; in old files ``rope_scaling`` and ``rope_theta`` are of these alone."""
        by_type = config.mapping("rope_parameters") or {}
        for name in by_type:
            if name not in (FULL, SLIDING):
                raise config.unsupported("rope_parameters", by_type, f"it has a RoPE for {FULL} and for {SLIDING}")
        scaling, positions = config.mapping("rope_scaling") or {}, max_position_embeddings
        of_full = replace(rope, theta=config.number("rope_theta", rope.theta, minimum=1))
        of_sliding = RopeDefaults(theta=config.number("rope_local_base_freq", 10000.0, minimum=1))
        full, sliding = ({**(by_type.get(name) or {})} for name in (FULL, SLIDING))
        self._sliding_rotary = rotary_within(config, "rope_parameters", sliding, head_dim, positions, of_sliding)
        key = "rope_scaling" if scaling else "rope_parameters"
        return rotary_within(config, key, {**full, **scaling}, head_dim, positions, of_full)

    def attention(self, i: int) -> AttentionLayer:
        """Scaled by ``query_pre_attn_scalar``, with window and RoPE of its type."""
        rotary = self._sliding_rotary if self._types[i] == SLIDING else self.rotary
        return replace(super().attention(i), scale=self._scale, sliding_window=self._windows[i], rotary=rotary)

    def embedding_scale(self, dtype: np.dtype[Any]) -> float:
        """``sqrt(E)``, rounded as the activations are."""
        return float(np.sqrt(self.shape.hidden_size).astype(dtype))

    def final_norm(self, weights: WeightReader) -> Norm:
        """With the one that is added to each weight."""
        return self._norm(weights, "model.norm")

    def blocks(self, weights: WeightReader, i: int) -> Sequence[Block]:
        """Attention, then the MLP."""
        s, layer, attention = self.shape, f"model.layers.{i}", f"model.layers.{i}.self_attn"
        q_norm, k_norm = (self._norm(weights, f"{attention}.{each}_norm", s.head_dim) for each in "qk")
        qkv = weights.linear(
            self.qkv_names(attention),
            s.hidden_size,
            ["rms_norm_qkv_rope_append"],
            has_bias=self._has_bias,
            heads=HeadSpec(s.num_heads, s.num_kv_heads, s.head_dim, has_norms=True),
        )
        rotary = weights.rotary(self.attention(i).rotary, s.head_dim)
        out = weights.linear(
            {f"{attention}.o_proj": s.hidden_size}, s.num_heads * s.head_dim, ["linear"], has_bias=self._has_bias
        )
        return (
            Attention(
                before=self._norm(weights, f"{layer}.input_layernorm"),
                projection=AttentionProjection(qkv, rotary, s.num_heads, s.num_kv_heads, s.head_dim, q_norm, k_norm),
                output=out,
                after=self._norm(weights, f"{layer}.post_attention_layernorm"),
            ),
            Mlp(
                before=self._norm(weights, f"{layer}.pre_feedforward_layernorm"),
                gate_up=weights.linear(self.gate_up_names(f"{layer}.mlp"), s.hidden_size, ["linear"]),
                down=weights.linear({f"{layer}.mlp.down_proj": s.hidden_size}, s.intermediate_size, ["linear"]),
                after=self._norm(weights, f"{layer}.post_feedforward_layernorm"),
            ),
        )

    def _norm(self, weights: WeightReader, name: str, size: int | None = None) -> Norm:
        return self.norm(weights, name, size, lambda weight: weight + np.float32(1))


def _types_by_pattern(config: ConfigReader) -> Sequence[str]:
    """A layer without a window after so many that have one."""
    pattern = config.integer("sliding_window_pattern", 6)
    return [SLIDING if (i + 1) % pattern else FULL for i in range(num_hidden_layers(config))]


@dataclass(frozen=True, slots=True)
class Attention:
    """``x += rms_norm(attention(rms_norm(x)) @ W)``."""

    before: Norm
    projection: AttentionProjection
    output: Linear
    after: Norm

    @property
    def products(self) -> Sequence[tuple[Linear, bool]]:
        """Both linear layers."""
        return (self.projection.qkv, False), (self.output, False)

    def bind(self, context: BlockContext) -> BoundBlock:
        """Queries, keys and values; attention; the output normalised and added."""
        qkv, heads = context.ops.op("rms_norm_qkv_rope_append", self.projection), Heads(context)
        add_output = NormedSum(context, self.output, self.after)

        def attention(x: Tensor, step: LayerStep) -> None:
            query = heads.query(step)
            qkv(query, step.cache, x, self.before, self.projection, step.batch)
            add_output(x, heads.attend(query, step))

        return attention


@dataclass(frozen=True, slots=True)
class Mlp:
    """``x += rms_norm((gelu(gate) * up) @ W)`` of the normalised stream."""

    before: Norm
    gate_up: Linear
    down: Linear
    after: Norm

    @property
    def products(self) -> Sequence[tuple[Linear, bool]]:
        """Both linear layers."""
        return (self.gate_up, False), (self.down, False)

    def bind(self, context: BlockContext) -> BoundBlock:
        """The gated activation; its product normalised and added."""
        rms_norm, activation = context.ops.op("rms_norm"), GatedActivation(context, self.gate_up, "gelu_mul")
        add_down = NormedSum(context, self.down, self.after)
        normed_rows = context.rows("normed", self.gate_up.in_features)

        def mlp(x: Tensor, step: LayerStep) -> None:
            normed = normed_rows[: x.shape[0]]
            rms_norm(normed, x, self.before)
            add_down(x, activation(normed))

        return mlp
