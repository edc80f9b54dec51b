"""What fused ops on a device are made of; see :class:`~tinyvllm.ops.device_ops.DeviceOps` for what they compute.

Memory between the parts comes from the workspace when an op is bound; its name says what it holds.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyvllm.device import FLOAT32, Buffer
from tinyvllm.interfaces import BindContext
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.ops.device_values import AttentionLayer, DeviceBatch, DeviceCache, first_rows, rows_from


def compose_qkv(context: BindContext) -> Callable[..., None]:
    """``rms_norm``, ``linear``, ``rope_append``."""
    rms_norm, linear, rope_append = context.op("rms_norm"), context.op("linear"), context.op("rope_append")
    model, workspace = context.spec.model, context.on_device
    normed_rows = normed_rows_of(context)
    num_columns = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    qkv_rows = workspace.buffer("qkv", (workspace.limits.max_tokens, num_columns))

    def rms_norm_qkv_rope_append(
        query: Buffer, cache: DeviceCache, x: Buffer, norm: Norm, projection: AttentionProjection, batch: DeviceBatch
    ) -> None:
        normed, qkv = first_rows(normed_rows, x.shape[0]), first_rows(qkv_rows, x.shape[0])
        rms_norm(normed, x, norm)
        linear(qkv, normed, projection.qkv)
        rope_append(query, cache, qkv, projection, batch)

    return rms_norm_qkv_rope_append


def compose_attention(context: BindContext) -> Callable[..., None]:
    """``attention_decode`` and, where a sequence has several tokens, ``attention_prefill``."""
    decode, prefill = context.op("attention_decode"), context.op("attention_prefill")

    def attention(out: Buffer, query: Buffer, cache: DeviceCache, batch: DeviceBatch, layer: AttentionLayer) -> None:
        if batch.has_decodes:
            decode(out, query, cache, batch, layer)
        if batch.cu_seqlens_q is not None:
            prefill(out, query, cache, batch, layer)

    return attention


def compose_linear_residual(context: BindContext) -> Callable[..., None]:
    """``linear``, ``add``."""
    linear, add = context.op("linear"), context.op("add")
    workspace = context.on_device
    rows = workspace.buffer("product", (workspace.limits.max_tokens, context.spec.model.hidden_size))

    def linear_residual(residual: Buffer, x: Buffer, layer: Linear) -> None:
        product = first_rows(rows, x.shape[0])
        linear(product, x, layer)
        add(residual, product)

    return linear_residual


def compose_gate_up(context: BindContext) -> Callable[..., None]:
    """``rms_norm``, ``linear``, ``silu_mul``."""
    rms_norm, linear, silu_mul = context.op("rms_norm"), context.op("linear"), context.op("silu_mul")
    workspace = context.on_device
    normed_rows = normed_rows_of(context)
    gate_up_rows = workspace.buffer("gate_up", (workspace.limits.max_tokens, 2 * context.spec.model.intermediate_size))

    def rms_norm_gate_up_silu(out: Buffer, x: Buffer, norm: Norm, gate_up: Linear) -> None:
        normed, product = first_rows(normed_rows, x.shape[0]), first_rows(gate_up_rows, x.shape[0])
        rms_norm(normed, x, norm)
        linear(product, normed, gate_up)
        silu_mul(out, product)

    return rms_norm_gate_up_silu


def compose_lm_head(context: BindContext) -> Callable[..., None]:
    """``rms_norm``, ``lm_head``."""
    rms_norm, lm_head = context.op("rms_norm"), context.op("lm_head")
    normed_rows = normed_rows_of(context)

    def rms_norm_lm_head(logits: Buffer, x: Buffer, norm: Norm, head: Linear) -> None:
        normed = first_rows(normed_rows, x.shape[0])
        rms_norm(normed, x, norm)
        lm_head(logits, normed, head)

    return rms_norm_lm_head


def compose_lm_head_argmax(context: BindContext) -> Callable[..., None]:
    """``rms_norm_lm_head``, ``argmax``, so many rows at a time as logits are held of."""
    rms_norm_lm_head, argmax = context.op("rms_norm_lm_head"), context.op("argmax")
    limits, vocab_size = context.on_device.limits, context.spec.model.vocab_size
    logits_rows = context.on_device.buffer("logits", (limits.max_logits_rows, vocab_size), FLOAT32)

    def lm_head_argmax(token_ids: Buffer, x: Buffer, norm: Norm, head: Linear) -> None:
        for start in range(0, x.shape[0], limits.max_logits_rows):
            num_rows = min(limits.max_logits_rows, x.shape[0] - start)
            logits = first_rows(logits_rows, num_rows)
            rms_norm_lm_head(logits, rows_from(x, start, num_rows), norm, head)
            argmax(rows_from(token_ids, start, num_rows), logits)

    return lm_head_argmax


def normed_rows_of(context: BindContext) -> Buffer:
    """``[max_tokens, E]``, bfloat16: where an op keeps its rows normalised."""
    workspace = context.on_device
    return workspace.buffer("normed", (workspace.limits.max_tokens, context.spec.model.hidden_size))
