"""The decoder that Llama, Qwen and Mistral share: what it is made of, and one step through it.

Knows operations by name and layers as values; knows nothing of files, devices or other sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyvllm.batch import Batch, LayerCache, read_only
from tinyvllm.interfaces import Attention, AttentionCall
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.models.rotary import RotaryConfig
from tinyvllm.shapes import Array, ModelShape


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What a ``config.json`` says.

    Attributes:
        shape: the sizes.
        dtype: as stored (``bfloat16``, ``float16``, ``float32``).
        rms_norm_eps: of every norm.
        rotary: of queries and keys.
        has_qkv_bias, has_output_bias: biases in attention.
        has_mlp_bias: biases in the MLP.
        has_qk_norm: each head of queries and keys is normalised (Qwen3).
        has_tied_embeddings: the head is the embedding table.
        sliding_windows: ``[L]``, the window of each layer or None.
    """

    shape: ModelShape
    dtype: str
    rms_norm_eps: float
    rotary: RotaryConfig
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    has_tied_embeddings: bool
    sliding_windows: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The weights of one layer."""

    input_norm: Norm
    projection: AttentionProjection
    output: Linear
    post_attention_norm: Norm
    gate_up: Linear
    down: Linear
    sliding_window: int | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights: ``embedding`` is ``[V, E]``."""

    embedding: Array
    layers: tuple[DecoderLayer, ...]
    final_norm: Norm
    head: Linear


class Decoder:
    """One model, bound to its operations and its attention.

    Args:
        weights: all of them.
        op: from the name of an op to the callable that serves it here.
        attention: what computes attention over the cache.
    """

    def __init__(self, weights: DecoderWeights, op: Callable[[str], Callable[..., Any]], attention: Attention) -> None:
        self._weights = weights
        self._attention = attention
        self._embedding = op("embedding")
        self._qkv = op("rms_norm_qkv_rope_append")
        self._linear_residual = op("linear_residual")
        self._gate_up = op("rms_norm_gate_up_silu")
        self._lm_head = op("rms_norm_lm_head")

    def forward(self, batch: Batch, caches: Sequence[LayerCache]) -> Array:
        """The residual stream after the last layer, ``[T, E]``; keys and values of the step go into ``caches``."""
        seen = batch.read_only()  # by the attention, a plugin's
        plan = self._attention.plan(seen)
        x = self._embedding(batch.token_ids, self._weights.embedding)
        for layer, cache in zip(self._weights.layers, caches, strict=True):
            projection = layer.projection
            query, key, value = self._qkv(x, layer.input_norm, projection, cache, batch)
            call = AttentionCall(
                query=read_only(query),
                key=read_only(key),
                value=read_only(value),
                cache=cache,
                batch=seen,
                plan=plan,
                scale=projection.head_dim**-0.5,
                sliding_window=layer.sliding_window,
                kv_written=True,
            )
            mixed = self._attention.forward(call).reshape(batch.num_tokens, -1)  # [T, H * D]
            x = self._linear_residual(mixed, layer.output, x)
            x = self._linear_residual(self._gate_up(x, layer.post_attention_norm, layer.gate_up), layer.down, x)
        return x

    def logits(self, hidden: Array) -> Array:
        """``[B, V]`` float32, from rows of what :meth:`forward` returned, ``[B, E]``."""
        return self._lm_head(hidden, self._weights.final_norm, self._weights.head)
