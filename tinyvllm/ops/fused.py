"""The fused ops: the signature of each, and what it is made of, the same on every device; see ``simple.py``.

Memory between the parts comes from the workspace when an op is bound; its name says what it holds.
"""

from __future__ import annotations

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.device import FLOAT32, Tensor
from tinyvllm.interfaces import BindContext
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.ops.op import BoundOp, fused
from tinyvllm.shapes import Array


def compose_qkv(context: BindContext) -> BoundOp:
    """``rms_norm``, ``linear``, ``rope_append``."""
    rms_norm, linear, rope_append = context.op("rms_norm"), context.op("linear"), context.op("rope_append")
    normed_rows, qkv_rows = normed_rows_of(context), context.rows("qkv", context.linear.out_features)

    def rms_norm_qkv_rope_append(
        query: Tensor, cache: LayerCache, x: Tensor, norm: Norm, projection: AttentionProjection, batch: BatchTensors
    ) -> None:
        normed, qkv = normed_rows[: x.shape[0]], qkv_rows[: x.shape[0]]
        rms_norm(normed, x, norm)
        linear(qkv, normed, projection.qkv)
        rope_append(query, cache, qkv, projection, batch)

    return rms_norm_qkv_rope_append


@fused("everything of a layer before attention", ("rms_norm", "linear", "rope_append"), compose_qkv)
def rms_norm_qkv_rope_append(
    query: Array, cache: LayerCache, x: Array, norm: Norm, projection: AttentionProjection, batch: BatchTensors
) -> None:
    """Everything of a layer before attention, of the residual stream ``x``, ``[T, E]``; see ``rope_append``."""


def compose_linear_residual(context: BindContext) -> BoundOp:
    """``linear``, ``add``."""
    linear, add = context.op("linear"), context.op("add")
    product_rows = context.rows("product", context.linear.out_features)

    def linear_residual(residual: Tensor, x: Tensor, layer: Linear) -> None:
        product = product_rows[: x.shape[0]]
        linear(product, x, layer)
        add(residual, product)

    return linear_residual


@fused("residual + x W + b", ("linear", "add"), compose_linear_residual)
def linear_residual(residual: Array, x: Array, layer: Linear) -> None:
    """``residual += x @ W + bias``; ``residual`` ``[T, N]``, ``x`` ``[T, K]``."""


def compose_gate_up(context: BindContext) -> BoundOp:
    """``rms_norm``, ``linear``, ``silu_mul``."""
    rms_norm, linear, silu_mul = context.op("rms_norm"), context.op("linear"), context.op("silu_mul")
    normed_rows, gate_up_rows = normed_rows_of(context), context.rows("gate_up", context.linear.out_features)

    def rms_norm_gate_up_silu(out: Tensor, x: Tensor, norm: Norm, gate_up: Linear) -> None:
        normed, product = normed_rows[: x.shape[0]], gate_up_rows[: x.shape[0]]
        rms_norm(normed, x, norm)
        linear(product, normed, gate_up)
        silu_mul(out, product)

    return rms_norm_gate_up_silu


@fused("the first half of the MLP", ("rms_norm", "linear", "silu_mul"), compose_gate_up)
def rms_norm_gate_up_silu(out: Array, x: Array, norm: Norm, gate_up: Linear) -> None:
    """``silu(gate) * up`` of the normalised stream: ``out`` ``[T, F]``, ``x`` ``[T, E]``, ``2F`` features out."""


def compose_lm_head(context: BindContext) -> BoundOp:
    """``rms_norm``, ``lm_head``."""
    rms_norm, lm_head = context.op("rms_norm"), context.op("lm_head")
    normed_rows = normed_rows_of(context)

    def rms_norm_lm_head(logits: Tensor, x: Tensor, norm: Norm, head: Linear) -> None:
        normed = normed_rows[: x.shape[0]]
        rms_norm(normed, x, norm)
        lm_head(logits, normed, head)

    return rms_norm_lm_head


@fused("final norm and logits", ("rms_norm", "lm_head"), compose_lm_head)
def rms_norm_lm_head(logits: Array, x: Array, norm: Norm, head: Linear) -> None:
    """Final norm and logits: ``[T, V]``, float32, of ``x`` ``[T, E]``."""


def compose_lm_head_argmax(context: BindContext) -> BoundOp:
    """``rms_norm_lm_head``, ``argmax``, so many rows at a time as logits are held of."""
    rms_norm_lm_head, argmax = context.op("rms_norm_lm_head"), context.op("argmax")
    max_rows = context.limits.max_logits_rows
    logits_rows = context.workspace.buffer("logits", (max_rows, context.linear.out_features), FLOAT32)

    def lm_head_argmax(token_ids: Tensor, x: Tensor, norm: Norm, head: Linear) -> None:
        for start in range(0, x.shape[0], max_rows):
            stop = min(start + max_rows, x.shape[0])
            logits = logits_rows[: stop - start]
            rms_norm_lm_head(logits, x[start:stop], norm, head)
            argmax(token_ids[start:stop], logits)

    return lm_head_argmax


@fused("final norm and the most likely token", ("rms_norm_lm_head", "argmax"), compose_lm_head_argmax)
def lm_head_argmax(token_ids: Array, x: Array, norm: Norm, head: Linear) -> None:
    """Final norm and the most likely token, ``[T]`` int32; -1 where a logit is NaN."""


def normed_rows_of(context: BindContext) -> Tensor:
    """``[max_tokens, E]``: where an op keeps its rows normalised."""
    return context.rows("normed", context.linear.in_features)
