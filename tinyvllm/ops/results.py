"""The shapes of what each op returns on the CPU, from its arguments. On a device an op returns nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from tinyvllm.batch import Batch, LayerCache
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.shapes import Array

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Callable[..., tuple[Shape, ...]]


def _table_rows(token_ids: Array, table: Array) -> tuple[Shape, ...]:
    return ((len(token_ids), table.shape[1]),)


def _first(first: Array, *_: Any) -> tuple[Shape, ...]:
    return (first.shape,)


def _linear(x: Array, layer: Linear) -> tuple[Shape, ...]:
    return ((*x.shape[:-1], layer.out_features),)


def _silu_mul(gate_up: Array) -> tuple[Shape, ...]:
    return ((*gate_up.shape[:-1], gate_up.shape[-1] // 2),)


def _qkv(num_tokens: int, projection: AttentionProjection) -> tuple[Shape, ...]:
    query = (num_tokens, projection.num_heads, projection.head_dim)
    key = (num_tokens, projection.num_kv_heads, projection.head_dim)
    return query, key, key


def _rope_append(qkv: Array, projection: AttentionProjection, *_: Any) -> tuple[Shape, ...]:
    return _qkv(len(qkv), projection)


def _qkv_rope_append(
    x: Array, norm: Norm, projection: AttentionProjection, cache: LayerCache, batch: Batch
) -> tuple[Shape, ...]:
    return _qkv(len(x), projection)


def _linear_residual(x: Array, layer: Linear, residual: Array) -> tuple[Shape, ...]:
    return (residual.shape,)


def _gate_up(x: Array, norm: Norm, gate_up: Linear) -> tuple[Shape, ...]:
    return ((*x.shape[:-1], gate_up.out_features // 2),)


def _head(x: Array, norm: Norm, head: Linear) -> tuple[Shape, ...]:
    return ((*x.shape[:-1], head.out_features),)


def _nothing(*_: Any) -> tuple[Shape, ...]:
    return ()


RESULT_SHAPES: Mapping[str, Shapes] = {
    "embedding": _table_rows,
    "rms_norm": _first,
    "linear": _linear,
    "add": _first,
    "rope": _first,
    "kv_append": _nothing,
    "rope_append": _rope_append,
    "silu_mul": _silu_mul,
    "rms_norm_qkv_rope_append": _qkv_rope_append,
    "linear_residual": _linear_residual,
    "rms_norm_gate_up_silu": _gate_up,
    "rms_norm_lm_head": _head,
}
"""Of each op that the CPU has: called with the arguments of the op, a shape for each array that it returns."""
