"""The NumPy definitions with the signatures of their ops: what serves an op on the CPU unless told otherwise."""

from __future__ import annotations

from typing import Any

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.reference.add import add as _add
from tinyvllm.reference.argmax import argmax as _argmax
from tinyvllm.reference.embedding import embedding as _embedding
from tinyvllm.reference.gelu_mul import gelu_mul as _gelu_mul
from tinyvllm.reference.kv_append import kv_append
from tinyvllm.reference.linear import linear as _linear
from tinyvllm.reference.linear import linear_in_tiles as _linear_in_tiles
from tinyvllm.reference.norm_columns import norm_columns as _norm_columns
from tinyvllm.reference.rms_norm import rms_norm as _rms_norm
from tinyvllm.reference.rope import heads_of, rope
from tinyvllm.reference.scale import scale as _scale
from tinyvllm.reference.silu_mul import silu_mul as _silu_mul

# Tensors are NumPy arrays here.


def embedding(out: Any, token_ids: Any, table: Any) -> None:
    """``embedding``."""
    out[...] = _embedding(token_ids, table)


def rms_norm(out: Any, x: Any, norm: Norm) -> None:
    """``rms_norm``."""
    _rms_norm(x, norm, out)


def linear(out: Any, x: Any, layer: Linear) -> None:
    """``linear``, and ``lm_head``, whose logits are not rounded here either."""
    _linear(x, layer, out)


def linear_in_tiles(out: Any, x: Any, layer: Linear) -> None:
    """``linear`` and ``lm_head`` with the same bits for a row in any batch."""
    out[...] = _linear_in_tiles(x, layer)


def add(residual: Any, x: Any) -> None:
    """``add``."""
    _add(residual, x)


def rope_append(query: Any, cache: LayerCache, qkv: Any, projection: AttentionProjection, batch: BatchTensors) -> None:
    """``rope_append``."""
    p, positions = projection, batch.positions
    query_key, value = heads_of(qkv, p)
    if p.q_norm is not None and p.k_norm is not None:
        query[...] = rope(_rms_norm(query_key[:, : p.num_heads], p.q_norm), positions, p.rotary)
        key = rope(_rms_norm(query_key[:, p.num_heads :], p.k_norm), positions, p.rotary)
    else:
        rotated = rope(query_key, positions, p.rotary)
        query[...] = rotated[:, : p.num_heads]
        key = rotated[:, p.num_heads :]
    kv_append(key, value, cache, batch.slot_mapping)


def silu_mul(out: Any, gate_up: Any) -> None:
    """``silu_mul``."""
    _silu_mul(gate_up, out)


def gelu_mul(out: Any, gate_up: Any) -> None:
    """``gelu_mul``."""
    out[...] = _gelu_mul(gate_up)


def scale(x: Any, factor: float) -> None:
    """``scale``."""
    _scale(x, factor)


def norm_columns(x: Any, first: int, norm: Norm) -> None:
    """``norm_columns``."""
    _norm_columns(x, first, norm)


def argmax(token_ids: Any, logits: Any) -> None:
    """``argmax``."""
    token_ids[...] = _argmax(logits)
