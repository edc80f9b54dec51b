"""Blocks that several families are made of: attention and the gated MLP, each with its norm, added to the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvllm.batch import protected
from tinyvllm.device import Tensor
from tinyvllm.interfaces import AttentionCall
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.models.model import BlockContext, BoundBlock, LayerStep


@dataclass(frozen=True, slots=True)
class Attention:
    """``x += attention(rms_norm(x)) @ W``, as in Llama.

    Attributes:
        norm: of the stream.
        projection: to queries, keys and values.
        output: of all heads, to the stream.
    """

    norm: Norm
    projection: AttentionProjection
    output: Linear

    @property
    def products(self) -> Sequence[tuple[Linear, bool]]:
        """Both linear layers."""
        return (self.projection.qkv, False), (self.output, True)

    def bind(self, context: BlockContext) -> BoundBlock:
        """Queries, keys and values; attention; the output added."""
        qkv = context.ops.op("rms_norm_qkv_rope_append", self.projection)
        add_output = context.ops.op("linear_residual", self.output)
        heads, norm, projection, output = Heads(context), self.norm, self.projection, self.output

        def attention(x: Tensor, step: LayerStep) -> None:
            query = heads.query(step)
            qkv(query, step.cache, x, norm, projection, step.batch)
            add_output(x, heads.attend(query, step), output)

        return attention


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """``x += (silu(gate) * up) @ W`` of the normalised stream, as in Llama.

    Attributes:
        norm: of the stream.
        gate_up: both as one layer, the gate first.
        down: back to the stream.
    """

    norm: Norm
    gate_up: Linear
    down: Linear

    @property
    def products(self) -> Sequence[tuple[Linear, bool]]:
        """Both linear layers."""
        return (self.gate_up, False), (self.down, True)

    def bind(self, context: BlockContext) -> BoundBlock:
        """The gated activation; its product added."""
        gate_up = context.ops.op("rms_norm_gate_up_silu", self.gate_up)
        add_down = context.ops.op("linear_residual", self.down)
        active_rows = context.rows("active", self.down.in_features)

        def gated_mlp(x: Tensor, step: LayerStep) -> None:
            active = active_rows[: x.shape[0]]
            gate_up(active, x, self.norm, self.gate_up)
            add_down(x, active, self.down)

        return gated_mlp


class NormedSum:
    """``x += rms_norm(rows @ W)``, for blocks whose norm stands behind them.

    Args:
        context: of the block.
        layer: ``W``.
        norm: of the product.
    """

    def __init__(self, context: BlockContext, layer: Linear, norm: Norm) -> None:
        self._layer, self._norm = layer, norm
        self._linear, self._add = context.ops.op("linear", layer), context.ops.op("add")
        self._rms_norm = context.ops.op("rms_norm")
        self._product = context.rows("product", layer.out_features)

    def __call__(self, x: Tensor, rows: Tensor) -> None:
        """Change ``x``, ``[T, E]``, by the product of ``rows``."""
        product = self._product[: x.shape[0]]
        self._linear(product, rows, self._layer)
        self._rms_norm(product, product, self._norm)
        self._add(x, product)


class GatedActivation:
    """``f(gate) * up`` of rows, for blocks whose norms stand elsewhere than Llama's.

    Args:
        context: of the block.
        layer: gate and up as one layer, the gate first.
        activation: the op, ``silu_mul`` or ``gelu_mul``.
    """

    def __init__(self, context: BlockContext, layer: Linear, activation: str) -> None:
        self._layer = layer
        self._linear, self._activation = context.ops.op("linear", layer), context.ops.op(activation)
        self._gate_up = context.rows("gate_up", layer.out_features)
        self._active = context.rows("active", layer.out_features // 2)

    def __call__(self, rows: Tensor) -> Tensor:
        """``[T, F]`` of rows ``[T, E]``, until the next call."""
        gate_up, active = self._gate_up[: rows.shape[0]], self._active[: rows.shape[0]]
        self._linear(gate_up, rows, self._layer)
        self._activation(active, gate_up)
        return active


class Heads:
    """The queries of a step, and attention over the cache, for blocks that compute the queries themselves.

    Args:
        context: of the block.
    """

    def __init__(self, context: BlockContext) -> None:
        self._attention, self._spec = context.attention, context.spec
        self._width = context.spec.num_heads * context.spec.head_dim
        self._query, self._mixed = context.rows("query", self._width), context.rows("mixed", self._width)

    def query(self, step: LayerStep) -> Tensor:
        """``[T, H, D]``: where the queries of a step go."""
        num_tokens = step.batch.num_tokens
        return self._query[:num_tokens].reshape((num_tokens, self._spec.num_heads, self._spec.head_dim))

    def attend(self, query: Tensor, step: LayerStep) -> Tensor:
        """``[T, H D]``: what each query finds in the cache, in which the step's keys and values are already."""
        mixed = self._mixed[: query.shape[0]]
        out, seen = mixed.reshape(query.shape), protected(query)  # by the attention, a plugin
        self._attention.forward(AttentionCall(out, seen, step.cache, step.batch, step.plan, self._spec, step.is_first))
        return mixed
