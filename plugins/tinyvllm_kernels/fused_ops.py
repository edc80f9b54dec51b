"""The fused ops of a device: one kernel for few rows; for many their parts, or a matrix product that adds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tinyvllm.ops import compositions
from tinyvllm.ops.compositions import BoundOp
from tinyvllm.plugin import AttentionProjection, BatchTensors, BindContext, Buffer, LayerCache, Linear, Norm
from tinyvllm_kernels.projection.gate_up_silu import GateUpSilu
from tinyvllm_kernels.projection.linear_residual import LinearResidual
from tinyvllm_kernels.projection.lm_head import LmHeadArgmax, LmHeadLogits
from tinyvllm_kernels.projection.qkv_rope_append import QkvRopeAppend
from tinyvllm_kernels.tiers import FUSED_HEAD_ROWS, Tiers


def bind_qkv(context: BindContext) -> BoundOp:
    """``rms_norm_qkv_rope_append``."""
    device, tiers = context.gpu, Tiers(context)
    composed = compositions.compose_qkv(context) if tiers.has_products else None
    linear, heads = context.linear, context.spec.heads
    assert heads is not None, "the op splits its rows into heads"

    @cache
    def made(eps: float, max_rows: int) -> QkvRopeAppend:
        return QkvRopeAppend(
            device, hidden_size=linear.in_features, num_heads=heads.num_heads, num_kv_heads=heads.num_kv_heads,
            head_dim=heads.head_dim, eps=eps, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, linear.in_features, linear.out_features),
        )  # fmt: skip

    def rms_norm_qkv_rope_append(
        query: Buffer, cache: LayerCache, x: Buffer, norm: Norm, projection: AttentionProjection, batch: BatchTensors
    ) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None:
            assert composed is not None
            composed(query, cache, x, norm, projection, batch)
            return
        qkv, rotary = projection.qkv, projection.rotary
        made(norm.eps, rows)(
            query, cache.key, cache.value, x, norm.weight, qkv.weight, qkv.bias, rotary.cos, rotary.sin,
            batch.positions, batch.slot_mapping,
        )  # fmt: skip

    return rms_norm_qkv_rope_append


def bind_linear_residual(context: BindContext) -> BoundOp:
    """``linear_residual``."""
    device, tiers = context.gpu, Tiers(context)

    @cache
    def made(out_features: int, in_features: int, max_rows: int) -> LinearResidual:
        return LinearResidual(
            device, in_features=in_features, out_features=out_features, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, in_features, out_features),
        )  # fmt: skip

    def linear_residual(residual: Buffer, x: Buffer, layer: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None and layer.bias is None:
            device.gemm(residual, x, layer.weight, accumulate=True)
        else:
            made(layer.out_features, layer.in_features, rows or tiers.max_tokens)(residual, x, layer.weight, layer.bias)

    return linear_residual


def bind_gate_up(context: BindContext) -> BoundOp:
    """``rms_norm_gate_up_silu``."""
    device, tiers = context.gpu, Tiers(context)
    composed = compositions.compose_gate_up(context) if tiers.has_products else None
    linear = context.linear

    @cache
    def made(eps: float, max_rows: int) -> GateUpSilu:
        return GateUpSilu(
            device, hidden_size=linear.in_features, intermediate_size=linear.out_features // 2, eps=eps,
            max_rows=max_rows, tiling=tiers.tiling(max_rows, linear.in_features, linear.out_features),
        )  # fmt: skip

    def rms_norm_gate_up_silu(out: Buffer, x: Buffer, norm: Norm, gate_up: Linear) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None:
            assert composed is not None
            composed(out, x, norm, gate_up)
        else:
            made(norm.eps, rows)(out, x, norm.weight, gate_up.weight)

    return rms_norm_gate_up_silu


def bind_rms_norm_lm_head(context: BindContext) -> BoundOp:
    """``rms_norm_lm_head``."""
    return _bind_head(LmHeadLogits, context, compositions.compose_lm_head)


def bind_lm_head_argmax(context: BindContext) -> BoundOp:
    """``lm_head_argmax``."""
    return _bind_head(LmHeadArgmax, context, compositions.compose_lm_head_argmax)


def _bind_head(
    launcher: type[LmHeadLogits] | type[LmHeadArgmax],
    context: BindContext,
    compose: Callable[[BindContext], Callable[..., None]],
) -> BoundOp:
    device, tiers = context.gpu, Tiers(context, FUSED_HEAD_ROWS)
    composed = compose(context) if tiers.has_head_products else None

    @cache
    def made(vocab_size: int, hidden_size: int, eps: float, max_rows: int) -> LmHeadLogits | LmHeadArgmax:
        return launcher(
            device, hidden_size=hidden_size, vocab_size=vocab_size, eps=eps, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, hidden_size, vocab_size, may_split=False),
        )  # fmt: skip

    def head_of_rows(out: Buffer, x: Buffer, norm: Norm, head: Linear) -> None:
        rows = tiers.fused_head_rows(x.shape[0])
        if rows is None:
            assert composed is not None
            composed(out, x, norm, head)
        else:
            made(head.out_features, head.in_features, norm.eps, rows)(out, x, norm.weight, head.weight)

    return head_of_rows
