"""The operations that models call, each with its definition.

A simple op is defined by its NumPy reference; a fused op by how it is composed of simpler ones. Models call the
*largest* op; where nothing implements it whole, its ``compose`` runs through the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyvllm.batch import Batch, LayerCache
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.reference.embedding import embedding
from tinyvllm.reference.kv_append import kv_append
from tinyvllm.reference.linear import linear
from tinyvllm.reference.rms_norm import rms_norm
from tinyvllm.reference.rope import rope
from tinyvllm.reference.silu_mul import silu_mul
from tinyvllm.shapes import Array

Resolve = Callable[[str], Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Op:
    """One named operation.

    Attributes:
        name: what the configuration and the start-up report call it.
        summary: one line.
        reference: the NumPy definition of a simple op; None for a fused one.
        parts: names of the ops that a fused op is made of; empty for a simple one.
        compose: given a function from op name to callable, the fused op as a callable.
    """

    name: str
    summary: str
    reference: Callable[..., Any] | None = None
    parts: tuple[str, ...] = ()
    compose: Callable[[Resolve], Callable[..., Any]] | None = None

    @property
    def is_fused(self) -> bool:
        """Whether the op is defined by other ops."""
        return self.compose is not None


def _compose_qkv(op: Resolve) -> Callable[..., tuple[Array, Array, Array]]:
    rms_norm, linear, rope, kv_append = op("rms_norm"), op("linear"), op("rope"), op("kv_append")

    def rms_norm_qkv_rope_append(
        x: Array, norm: Norm, projection: AttentionProjection, cache: LayerCache, batch: Batch
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values of a layer, rotated; keys and values stored in the cache.

        Args:
            x: ``[T, E]``, the residual stream.
        Returns:
            query ``[T, H, D]``, key ``[T, K, D]``, value ``[T, K, D]``.
        """
        p = projection
        heads = linear(rms_norm(x, norm), p.qkv).reshape(len(x), -1, p.head_dim)  # [T, H + 2K, D]
        num_rotated = p.num_heads + p.num_kv_heads
        query_key, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if p.q_norm is not None and p.k_norm is not None:
            query = rope(rms_norm(query_key[:, : p.num_heads], p.q_norm), batch.positions, p.rotary)
            key = rope(rms_norm(query_key[:, p.num_heads :], p.k_norm), batch.positions, p.rotary)
        else:
            rotated = rope(query_key, batch.positions, p.rotary)
            query, key = rotated[:, : p.num_heads], rotated[:, p.num_heads :]
        kv_append(key, value, cache, batch.slot_mapping)
        return query, key, value

    return rms_norm_qkv_rope_append


def _compose_linear_residual(op: Resolve) -> Callable[..., Array]:
    linear = op("linear")

    def linear_residual(x: Array, layer: Linear, residual: Array) -> Array:
        """``residual + layer(x)``, ``[T, E]``; ``residual`` is overwritten."""
        residual += linear(x, layer)
        return residual

    return linear_residual


def _compose_gate_up(op: Resolve) -> Callable[..., Array]:
    rms_norm, linear, silu_mul = op("rms_norm"), op("linear"), op("silu_mul")

    def rms_norm_gate_up_silu(x: Array, norm: Norm, gate_up: Linear) -> Array:
        """``silu(gate) * up`` of the normalised stream, ``[T, F]``."""
        return silu_mul(linear(rms_norm(x, norm), gate_up))

    return rms_norm_gate_up_silu


def _compose_lm_head(op: Resolve) -> Callable[..., Array]:
    rms_norm, linear = op("rms_norm"), op("linear")

    def rms_norm_lm_head(x: Array, norm: Norm, head: Linear) -> Array:
        """Logits ``[T, V]``, float32."""
        return linear(rms_norm(x, norm), head)

    return rms_norm_lm_head


OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        Op("embedding", "token ids to rows of the embedding table", embedding),
        Op("rms_norm", "root-mean-square normalisation of rows", rms_norm),
        Op("linear", "x W + b", linear),
        Op("rope", "rotary position embedding", rope),
        Op("kv_append", "store keys and values in the paged cache", kv_append),
        Op("silu_mul", "silu(gate) * up", silu_mul),
        Op(
            "rms_norm_qkv_rope_append",
            "everything of a layer before attention",
            parts=("rms_norm", "linear", "rope", "kv_append"),
            compose=_compose_qkv,
        ),
        Op("linear_residual", "residual + x W + b", parts=("linear",), compose=_compose_linear_residual),
        Op(
            "rms_norm_gate_up_silu",
            "the first half of the MLP",
            parts=("rms_norm", "linear", "silu_mul"),
            compose=_compose_gate_up,
        ),
        Op("rms_norm_lm_head", "final norm and logits", parts=("rms_norm", "linear"), compose=_compose_lm_head),
    )
}
