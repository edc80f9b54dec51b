"""The simple ops of a device: a launcher each, made for sizes when they first come."""

from __future__ import annotations

from functools import cache

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.device import Buffer
from tinyvllm.interfaces import BindContext
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.ops.compositions import BoundOp
from tinyvllm_kernels.projection.linear import LinearRows
from tinyvllm_kernels.projection.logits import LogitsRows
from tinyvllm_kernels.rows.add import Add
from tinyvllm_kernels.rows.embedding import Embedding
from tinyvllm_kernels.rows.gelu_mul import GeluMul
from tinyvllm_kernels.rows.greedy_ids import GreedyIds
from tinyvllm_kernels.rows.norm_columns import NormColumns
from tinyvllm_kernels.rows.rms_norm import RmsNorm
from tinyvllm_kernels.rows.rope_append import RopeAppend
from tinyvllm_kernels.rows.scale import Scale
from tinyvllm_kernels.rows.silu_mul import SiluMul
from tinyvllm_kernels.tiers import FUSED_HEAD_ROWS, Tiers


def bind_embedding(context: BindContext) -> BoundOp:
    """``embedding``."""
    device = context.gpu
    made = cache(lambda size: Embedding(device, hidden_size=size))

    def embedding(out: Buffer, token_ids: Buffer, table: Buffer) -> None:
        made(table.shape[1])(out, token_ids, table)

    return embedding


def bind_rms_norm(context: BindContext) -> BoundOp:
    """``rms_norm``."""
    device = context.gpu
    made = cache(lambda size, eps: RmsNorm(device, hidden_size=size, eps=eps))

    def rms_norm(out: Buffer, x: Buffer, norm: Norm) -> None:
        made(x.shape[1], norm.eps)(out, x, norm.weight)

    return rms_norm


def bind_linear(context: BindContext) -> BoundOp:
    """``linear``."""
    device, tiers = context.gpu, Tiers(context)

    @cache
    def made(out_features: int, in_features: int, max_rows: int) -> LinearRows:
        return LinearRows(
            device, in_features=in_features, out_features=out_features, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, in_features, out_features),
        )  # fmt: skip

    def linear(out: Buffer, x: Buffer, layer: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None and layer.bias is None:
            device.gemm(out, x, layer.weight)
        else:
            made(layer.out_features, layer.in_features, rows or tiers.max_tokens)(out, x, layer.weight, layer.bias)

    return linear


def bind_add(context: BindContext) -> BoundOp:
    """``add``."""
    device = context.gpu
    made = cache(lambda size: Add(device, hidden_size=size))

    def add(residual: Buffer, x: Buffer) -> None:
        made(x.shape[1])(residual, x)

    return add


def bind_rope_append(context: BindContext) -> BoundOp:
    """``rope_append``."""
    device = context.gpu
    made = cache(lambda h, k, d, eps: RopeAppend(device, num_heads=h, num_kv_heads=k, head_dim=d, eps=eps))

    def rope_append(
        query: Buffer, cache: LayerCache, qkv: Buffer, projection: AttentionProjection, batch: BatchTensors
    ) -> None:
        p, q_norm, k_norm = projection, projection.q_norm, projection.k_norm
        launch = made(p.num_heads, p.num_kv_heads, p.head_dim, 0.0 if q_norm is None else q_norm.eps)
        launch(
            query, cache.key, cache.value, qkv, p.rotary.cos, p.rotary.sin, batch.positions, batch.slot_mapping,
            query_norm=None if q_norm is None else q_norm.weight, key_norm=None if k_norm is None else k_norm.weight,
        )  # fmt: skip

    return rope_append


def bind_silu_mul(context: BindContext) -> BoundOp:
    """``silu_mul``."""
    device = context.gpu
    made = cache(lambda size: SiluMul(device, intermediate_size=size))

    def silu_mul(out: Buffer, gate_up: Buffer) -> None:
        made(out.shape[1])(out, gate_up)

    return silu_mul


def bind_gelu_mul(context: BindContext) -> BoundOp:
    """``gelu_mul``."""
    device = context.gpu
    made = cache(lambda size: GeluMul(device, intermediate_size=size))

    def gelu_mul(out: Buffer, gate_up: Buffer) -> None:
        made(out.shape[1])(out, gate_up)

    return gelu_mul


def bind_scale(context: BindContext) -> BoundOp:
    """``scale``."""
    device = context.gpu
    made = cache(lambda size: Scale(device, hidden_size=size))

    def scale(x: Buffer, factor: float) -> None:
        made(x.shape[1])(x, factor)

    return scale


def bind_norm_columns(context: BindContext) -> BoundOp:
    """``norm_columns``."""
    device = context.gpu
    made = cache(lambda width, first, size, eps: NormColumns(device, width=width, first=first, size=size, eps=eps))

    def norm_columns(x: Buffer, first: int, norm: Norm) -> None:
        made(x.shape[1], first, norm.weight.shape[0], norm.eps)(x, norm.weight)

    return norm_columns


def bind_lm_head(context: BindContext) -> BoundOp:
    """``lm_head``."""
    device, tiers = context.gpu, Tiers(context, FUSED_HEAD_ROWS)

    @cache
    def made(vocab_size: int, hidden_size: int, max_rows: int) -> LogitsRows:
        return LogitsRows(
            device, hidden_size=hidden_size, vocab_size=vocab_size, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, hidden_size, vocab_size, may_split=False),
        )  # fmt: skip

    def lm_head(logits: Buffer, x: Buffer, head: Linear) -> None:
        rows = tiers.head_rows(x.shape[0])
        if rows is None:
            device.gemm(logits, x, head.weight)
        else:
            made(head.out_features, head.in_features, rows)(logits, x, head.weight)

    return lm_head


def bind_argmax(context: BindContext) -> BoundOp:
    """``argmax``."""
    return GreedyIds(context.gpu, vocab_size=context.spec.model.vocab_size, max_rows=context.limits.max_logits_rows)
