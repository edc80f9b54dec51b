"""The simple ops: the signature of each, the same on every device, and its definition in NumPy.

Outputs come first, then inputs. Tensors are row-major: NumPy arrays on the CPU, buffers on a GPU. Activations, weights
and cache have the device's ``activation_dtype`` (float32 on the CPU, bfloat16 on a GPU) unless another type is named;
sums are float32. An op writes to its outputs and returns None. On a GPU it queues its work: on the hot path it neither
allocates nor waits nor reads back, so that a step can be recorded as a graph.
"""

from __future__ import annotations

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.ops.op import simple
from tinyvllm.reference.add import add as _add
from tinyvllm.reference.argmax import argmax as _argmax
from tinyvllm.reference.embedding import embedding as _embedding
from tinyvllm.reference.gelu_mul import gelu_mul as _gelu_mul
from tinyvllm.reference.kv_append import kv_append
from tinyvllm.reference.linear import linear as _linear
from tinyvllm.reference.norm_columns import norm_columns as _norm_columns
from tinyvllm.reference.rms_norm import rms_norm as _rms_norm
from tinyvllm.reference.rope import heads_of, rope
from tinyvllm.reference.scale import scale as _scale
from tinyvllm.reference.silu_mul import silu_mul as _silu_mul
from tinyvllm.shapes import Array


@simple("token ids to rows of the embedding table")
def embedding(out: Array, token_ids: Array, table: Array) -> None:
    """``out[t] = table[token_ids[t]]``; also used to gather rows of hidden states.

    Args:
        out: ``[T, E]``.
        token_ids: ``[T]``, int32.
        table: ``[N, E]``; on a GPU a row of NaN comes out for an id that is not below ``N``.
    """
    out[...] = _embedding(token_ids, table)


@simple("root-mean-square normalisation of rows")
def rms_norm(out: Array, x: Array, norm: Norm) -> None:
    """``out[t] = x[t] / sqrt(mean(x[t]**2) + norm.eps) * norm.weight``.

    Args:
        out, x: ``[T, E]``; may be one tensor.
        norm: its weight is ``[E]``.
    """
    _rms_norm(x, norm, out)


@simple("x W + b")
def linear(out: Array, x: Array, layer: Linear) -> None:
    """``out = x @ W + bias``.

    Args:
        out: ``[T, N]``.
        x: ``[T, K]``.
        layer: ``K`` features in, ``N`` out; its bias is ``[N]`` or None.
    """
    _linear(x, layer, out)


@simple("residual + x")
def add(residual: Array, x: Array) -> None:
    """``residual += x``, both ``[T, E]``."""
    _add(residual, x)


@simple("head norms, rotation, and the append to the cache")
def rope_append(
    query: Array, cache: LayerCache, qkv: Array, projection: AttentionProjection, batch: BatchTensors
) -> None:
    """Head norms if the projection has them, rotation; keys and values go to the cache.

    Args:
        query: ``[T, H, D]``.
        cache: changed at ``batch.slot_mapping``; on a GPU a negative slot stores neither key nor value.
        qkv: ``[T, (H + 2K) D]``; queries, keys, values.
        projection: its rotary table is ``[P, D/2]``, float32.
        batch: positions and slots.
    """
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


@simple("silu(gate) * up")
def silu_mul(out: Array, gate_up: Array) -> None:
    """``out = silu(gate) * up``, ``[T, F]``, of ``[T, 2F]``, the gate first."""
    _silu_mul(gate_up, out)


@simple("gelu(gate) * up, by the hyperbolic tangent")
def gelu_mul(out: Array, gate_up: Array) -> None:
    """``out = gelu(gate) * up`` by the hyperbolic tangent, ``[T, F]``, of ``[T, 2F]``, the gate first."""
    out[...] = _gelu_mul(gate_up)


@simple("x * factor")
def scale(x: Array, factor: float) -> None:
    """``x *= factor``, ``[T, E]``."""
    _scale(x, factor)


@simple("root-mean-square normalisation of some columns")
def norm_columns(x: Array, first: int, norm: Norm) -> None:
    """``rms_norm`` of the columns ``first .. first + N - 1``, in place.

    Args:
        x: ``[T, W]``; other columns stay as they are.
        first: column; on a GPU a multiple of 8.
        norm: its weight is ``[N]``.
    """
    _norm_columns(x, first, norm)


@simple("logits of normalised rows")
def lm_head(logits: Array, x: Array, head: Linear) -> None:
    """``logits = x @ W``, ``[T, V]``, float32, not rounded on the way."""
    _linear(x, head, logits)


@simple("the most likely token of each row")
def argmax(token_ids: Array, logits: Array) -> None:
    """The lowest index of the largest logit, ``[T]`` int32, of ``[T, V]`` float32; -1 where there is none."""
    token_ids[...] = _argmax(logits)
