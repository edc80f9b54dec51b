"""The operations that models call, each with its definition.

A simple op is defined by its NumPy reference; a fused op by how it is composed of simpler ones. Models call the
*largest* op; where nothing implements it whole, its ``compose`` runs through the same table. On a device the same op
works on buffers, with the signature that :class:`~tinyvllm.ops.device_ops.DeviceOps` gives it, and may be cut into
other parts: ``rope_append`` is one kernel there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyvllm.batch import Batch, LayerCache
from tinyvllm.interfaces import BindContext
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.ops import device_compose
from tinyvllm.reference.add import add
from tinyvllm.reference.argmax import argmax
from tinyvllm.reference.embedding import embedding
from tinyvllm.reference.kv_append import kv_append
from tinyvllm.reference.linear import linear
from tinyvllm.reference.paged_attention import paged_attention
from tinyvllm.reference.rms_norm import rms_norm
from tinyvllm.reference.rope import rope
from tinyvllm.reference.silu_mul import silu_mul
from tinyvllm.shapes import Array

Resolve = Callable[[str], Callable[..., Any]]


DeviceCompose = Callable[[BindContext], Callable[..., None]]


@dataclass(frozen=True, slots=True)
class Op:
    """One named operation.

    Attributes:
        name: what the configuration and the start-up report call it.
        summary: one line.
        reference: the NumPy definition of a simple op; None for a fused one.
        parts: names of the ops that a fused op is made of; empty for a simple one.
        compose: given a function from op name to callable, the fused op as a callable.
        device_parts, device_compose: the same on a device, over buffers.
        is_on_cpu, is_on_device: whether a model calls it there, by itself or as a part.
    """

    name: str
    summary: str
    reference: Callable[..., Any] | None = None
    parts: tuple[str, ...] = ()
    compose: Callable[[Resolve], Callable[..., Any]] | None = None
    device_parts: tuple[str, ...] = ()
    device_compose: DeviceCompose | None = None
    is_on_cpu: bool = True
    is_on_device: bool = True

    @property
    def is_fused(self) -> bool:
        """Whether the op is defined by other ops."""
        return self.compose is not None

    def is_on(self, device: str) -> bool:
        """Whether a model calls it on ``device``."""
        return self.is_on_cpu if device == "cpu" else self.is_on_device

    def parts_on(self, device: str) -> tuple[str, ...]:
        """What it is made of on ``device``; empty if it is simple there."""
        return self.parts if device == "cpu" else self.device_parts

    def composed(self, context: BindContext) -> Callable[..., Any] | None:
        """The op made of its parts, on the device of ``context``; None if it is simple there."""
        if context.spec.device == "cpu":
            return None if self.compose is None else self.compose(context.op)
        return None if self.device_compose is None else self.device_compose(context)


def _compose_rope_append(op: Resolve) -> Callable[..., tuple[Array, Array, Array]]:
    rms_norm, rope, kv_append = op("rms_norm"), op("rope"), op("kv_append")

    def rope_append(
        qkv: Array, projection: AttentionProjection, cache: LayerCache, batch: Batch
    ) -> tuple[Array, Array, Array]:
        """Head norms if the projection has them, rotation, and the append to the cache.

        Args:
            qkv: ``[T, (H + 2K) D]``; queries, keys, values.
        Returns:
            query ``[T, H, D]``, key ``[T, K, D]``, value ``[T, K, D]``.
        """
        p = projection
        heads = qkv.reshape(len(qkv), -1, p.head_dim)  # [T, H + 2K, D]
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

    return rope_append


def _compose_qkv(op: Resolve) -> Callable[..., tuple[Array, Array, Array]]:
    rms_norm, linear, rope_append = op("rms_norm"), op("linear"), op("rope_append")

    def rms_norm_qkv_rope_append(
        x: Array, norm: Norm, projection: AttentionProjection, cache: LayerCache, batch: Batch
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values of a layer, rotated; keys and values stored in the cache.

        Args:
            x: ``[T, E]``, the residual stream.
        Returns:
            query ``[T, H, D]``, key ``[T, K, D]``, value ``[T, K, D]``.
        """
        qkv = linear(rms_norm(x, norm), projection.qkv)
        return rope_append(qkv, projection, cache, batch)  # type: ignore[no-any-return]

    return rms_norm_qkv_rope_append


def _compose_linear_residual(op: Resolve) -> Callable[..., Array]:
    linear, add = op("linear"), op("add")

    def linear_residual(x: Array, layer: Linear, residual: Array) -> Array:
        """``residual + layer(x)``, ``[T, E]``; ``residual`` is overwritten."""
        return add(residual, linear(x, layer))

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


def _compose_lm_head_argmax(op: Resolve) -> Callable[..., Array]:
    rms_norm_lm_head, argmax = op("rms_norm_lm_head"), op("argmax")

    def lm_head_argmax(x: Array, norm: Norm, head: Linear) -> Array:
        """The most likely token of each row, ``[T]`` int32."""
        return argmax(rms_norm_lm_head(x, norm, head))

    return lm_head_argmax


def _simple(name: str, summary: str, reference: Callable[..., Any], *, is_on_cpu: bool = True) -> Op:
    return Op(name, summary, reference, is_on_cpu=is_on_cpu)


OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        _simple("embedding", "token ids to rows of the embedding table", embedding),
        _simple("rms_norm", "root-mean-square normalisation of rows", rms_norm),
        _simple("linear", "x W + b", linear),
        _simple("add", "residual + x", add),
        Op("rope", "rotary position embedding", rope, is_on_device=False),
        Op("kv_append", "store keys and values in the paged cache", kv_append, is_on_device=False),
        Op(
            "rope_append",
            "head norms, rotation, and the append to the cache",
            parts=("rms_norm", "rope", "kv_append"),
            compose=_compose_rope_append,
        ),
        _simple("silu_mul", "silu(gate) * up", silu_mul),
        _simple("lm_head", "logits of normalised rows", linear, is_on_cpu=False),
        _simple("argmax", "the most likely token of each row", argmax, is_on_cpu=False),
        _simple("attention_decode", "attention of sequences with one token", paged_attention, is_on_cpu=False),
        _simple("attention_prefill", "attention of sequences with several tokens", paged_attention, is_on_cpu=False),
        Op(
            "attention",
            "attention of every row over its sequence",
            paged_attention,
            device_parts=("attention_decode", "attention_prefill"),
            device_compose=device_compose.compose_attention,
            is_on_cpu=False,
        ),
        Op(
            "rms_norm_qkv_rope_append",
            "everything of a layer before attention",
            parts=("rms_norm", "linear", "rope_append"),
            compose=_compose_qkv,
            device_parts=("rms_norm", "linear", "rope_append"),
            device_compose=device_compose.compose_qkv,
        ),
        Op(
            "linear_residual",
            "residual + x W + b",
            parts=("linear", "add"),
            compose=_compose_linear_residual,
            device_parts=("linear", "add"),
            device_compose=device_compose.compose_linear_residual,
        ),
        Op(
            "rms_norm_gate_up_silu",
            "the first half of the MLP",
            parts=("rms_norm", "linear", "silu_mul"),
            compose=_compose_gate_up,
            device_parts=("rms_norm", "linear", "silu_mul"),
            device_compose=device_compose.compose_gate_up,
        ),
        Op(
            "rms_norm_lm_head",
            "final norm and logits",
            parts=("rms_norm", "linear"),
            compose=_compose_lm_head,
            device_parts=("rms_norm", "lm_head"),
            device_compose=device_compose.compose_lm_head,
        ),
        Op(
            "lm_head_argmax",
            "final norm and the most likely token",
            parts=("rms_norm_lm_head", "argmax"),
            compose=_compose_lm_head_argmax,
            device_parts=("rms_norm_lm_head", "argmax"),
            device_compose=device_compose.compose_lm_head_argmax,
            is_on_cpu=False,
        ),
    )
}
