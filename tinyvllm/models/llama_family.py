"""The decoder that Llama, Qwen, Mistral and others share: a norm before attention, one before the gated MLP.

A family says which biases and windows there are, and overrides what differs of the names and weights of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinyvllm.layers import AttentionProjection, HeadSpec, Linear, Norm
from tinyvllm.models.blocks import Attention, GatedMlp
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults
from tinyvllm.models.model import AttentionLayer, Block, Model
from tinyvllm.models.weights import WeightReader


@dataclass(frozen=True, slots=True)
class Biases:
    """Which linear layers have one: queries, keys and values; the output of attention; those of the MLP."""

    qkv: bool = False
    output: bool = False
    mlp: bool = False


class LlamaFamily(Model):
    """A model whose layers are an :class:`Attention` and a :class:`GatedMlp`.

    Args:
        config: the file.
        defaults: for absent keys.
        biases: of the linear layers.
        windows: of each layer; None: no layer has one.
    """

    def __init__(
        self,
        config: ConfigReader,
        defaults: Defaults,
        *,
        biases: Biases = Biases(),
        windows: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__(config, defaults)
        config.activation("hidden_act", ("silu", "swish"))
        self.biases, self._windows = biases, windows

    def attention(self, i: int) -> AttentionLayer:
        """With the window of the layer."""
        return replace(super().attention(i), sliding_window=None if self._windows is None else self._windows[i])

    def blocks(self, weights: WeightReader, i: int) -> Sequence[Block]:
        """Attention, then the MLP."""
        s, layer = self.shape, f"model.layers.{i}"
        gate_up = weights.linear(
            self.gate_up_names(f"{layer}.mlp"), s.hidden_size, ["rms_norm_gate_up_silu"], has_bias=self.biases.mlp
        )
        return (
            Attention(
                norm=self.norm(weights, f"{layer}.input_layernorm"),
                projection=self.projection(weights, f"{layer}.self_attn", i),
                output=self.to_stream(
                    weights, f"{layer}.self_attn.o_proj", s.num_heads * s.head_dim, has_bias=self.biases.output
                ),
            ),
            GatedMlp(
                norm=self.norm(weights, f"{layer}.post_attention_layernorm"),
                gate_up=gate_up,
                down=self.to_stream(weights, f"{layer}.mlp.down_proj", s.intermediate_size, has_bias=self.biases.mlp),
            ),
        )

    def projection(self, weights: WeightReader, name: str, i: int) -> AttentionProjection:
        """Queries, keys and values of layer ``i``, whose attention is called ``name``."""
        s = self.shape
        q_norm, k_norm = self.head_norms(weights, name)
        heads = HeadSpec(s.num_heads, s.num_kv_heads, s.head_dim, q_norm is not None)
        qkv = weights.linear(
            self.qkv_names(name), s.hidden_size, ["rms_norm_qkv_rope_append"], has_bias=self.biases.qkv, heads=heads
        )
        rotary = weights.rotary(self.attention(i).rotary, s.head_dim)
        return AttentionProjection(qkv, rotary, s.num_heads, s.num_kv_heads, s.head_dim, q_norm, k_norm)

    def head_norms(self, weights: WeightReader, name: str) -> tuple[Norm | None, Norm | None]:
        """Norms of each head of queries and keys; none by default."""
        return None, None

    def to_stream(self, weights: WeightReader, name: str, in_features: int, *, has_bias: bool) -> Linear:
        """The layer ``name``, whose output is added to the residual stream."""
        return weights.linear({name: self.shape.hidden_size}, in_features, ["linear_residual"], has_bias=has_bias)
