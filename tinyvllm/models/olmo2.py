"""OLMo 2 (Ai2 2024): norms of all queries and of all keys, none before a block, and one after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvllm.device import Tensor
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.models.blocks import GatedActivation, Heads, NormedSum
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, no_windows
from tinyvllm.models.llama_family import Biases, LlamaFamily
from tinyvllm.models.model import Block, BlockContext, BoundBlock, LayerStep
from tinyvllm.models.weights import WeightReader


class Model(LlamaFamily):
    """Biases of attention by ``attention_bias``."""

    def __init__(self, config: ConfigReader) -> None:
        no_windows(config)
        has_bias = config.flag("attention_bias", False)
        super().__init__(
            config,
            Defaults(max_position_embeddings=2048, rms_norm_eps=1e-5),
            biases=Biases(qkv=has_bias, output=has_bias),
        )

    def blocks(self, weights: WeightReader, i: int) -> Sequence[Block]:
        """Attention, then the MLP, each with its norm behind it."""
        s, layer, attention = self.shape, f"model.layers.{i}", f"model.layers.{i}.self_attn"
        query, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        qkv = weights.linear(self.qkv_names(attention), s.hidden_size, ["linear"], has_bias=self.biases.qkv)
        rotary = weights.rotary(self.attention(i).rotary, s.head_dim)
        return (
            Attention(
                projection=AttentionProjection(qkv, rotary, s.num_heads, s.num_kv_heads, s.head_dim),
                query_norm=self.norm(weights, f"{attention}.q_norm", query),
                key_norm=self.norm(weights, f"{attention}.k_norm", kv),
                output=self._linear(weights, f"{attention}.o_proj", query, has_bias=self.biases.output),
                norm=self.norm(weights, f"{layer}.post_attention_layernorm"),
            ),
            Mlp(
                gate_up=weights.linear(self.gate_up_names(f"{layer}.mlp"), s.hidden_size, ["linear"]),
                down=self._linear(weights, f"{layer}.mlp.down_proj", s.intermediate_size),
                norm=self.norm(weights, f"{layer}.post_feedforward_layernorm"),
            ),
        )

    def _linear(self, weights: WeightReader, name: str, in_features: int, *, has_bias: bool = False) -> Linear:
        return weights.linear({name: self.shape.hidden_size}, in_features, ["linear"], has_bias=has_bias)


@dataclass(frozen=True, slots=True)
class Attention:
    """``x += rms_norm(attention(x) @ W)``; queries and keys are normalised over all heads, then rotated."""

    projection: AttentionProjection
    query_norm: Norm
    key_norm: Norm
    output: Linear
    norm: Norm

    @property
    def products(self) -> Sequence[tuple[Linear, bool]]:
        """Both linear layers."""
        return (self.projection.qkv, False), (self.output, False)

    def bind(self, context: BlockContext) -> BoundBlock:
        """Queries, keys and values; attention; the output normalised and added."""
        ops, projection = context.ops, self.projection
        linear, norm_columns = ops.op("linear", projection.qkv), ops.op("norm_columns")
        rope_append, heads = ops.op("rope_append", projection), Heads(context)
        add_output = NormedSum(context, self.output, self.norm)
        qkv_rows = context.rows("qkv", projection.qkv.out_features)
        first_key = projection.num_heads * projection.head_dim

        def attention(x: Tensor, step: LayerStep) -> None:
            qkv, query = qkv_rows[: x.shape[0]], heads.query(step)
            linear(qkv, x, projection.qkv)
            norm_columns(qkv, 0, self.query_norm)
            norm_columns(qkv, first_key, self.key_norm)
            rope_append(query, step.cache, qkv, projection, step.batch)
            add_output(x, heads.attend(query, step))

        return attention


@dataclass(frozen=True, slots=True)
class Mlp:
    """``x += rms_norm((silu(gate) * up) @ W)``."""

    gate_up: Linear
    down: Linear
    norm: Norm

    @property
    def products(self) -> Sequence[tuple[Linear, bool]]:
        """Both linear layers."""
        return (self.gate_up, False), (self.down, False)

    def bind(self, context: BlockContext) -> BoundBlock:
        """The gated activation; its product normalised and added."""
        activation = GatedActivation(context, self.gate_up, "silu_mul")
        add_down = NormedSum(context, self.down, self.norm)

        def mlp(x: Tensor, step: LayerStep) -> None:
            add_down(x, activation(x))

        return mlp
