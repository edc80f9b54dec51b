"""Attention of a device: a launcher for each window, made with its workspace when the op is bound."""

from __future__ import annotations

from tinyvllm.device import Buffer
from tinyvllm.interfaces import BindContext
from tinyvllm.kernels.attention_decode import AttentionDecode
from tinyvllm.kernels.attention_prefill import AttentionPrefill
from tinyvllm.kernels.attention_sizes import AttentionSizes
from tinyvllm.ops.device_values import AttentionLayer, DeviceBatch, DeviceCache
from tinyvllm_kernels.tiers import Launch


def bind_attention_decode(context: BindContext) -> Launch:
    """``attention_decode``."""
    by_window = {
        window: AttentionDecode(context.on_device.device, sizes=_attention_sizes(context, window))
        for window in context.spec.sliding_windows
    }

    def attention_decode(
        out: Buffer, query: Buffer, cache: DeviceCache, batch: DeviceBatch, layer: AttentionLayer
    ) -> None:
        by_window[layer.sliding_window](
            out, query, *cache, batch.block_tables, batch.context_lens,
            cu_seqlens_q=batch.cu_seqlens_q, is_plan_older=not layer.is_first,
        )  # fmt: skip

    return attention_decode


def bind_attention_prefill(context: BindContext) -> Launch:
    """``attention_prefill``."""
    by_window = {
        window: AttentionPrefill(context.on_device.device, sizes=_attention_sizes(context, window))
        for window in context.spec.sliding_windows
    }

    def attention_prefill(
        out: Buffer, query: Buffer, cache: DeviceCache, batch: DeviceBatch, layer: AttentionLayer
    ) -> None:
        assert batch.cu_seqlens_q is not None
        by_window[layer.sliding_window](
            out, query, *cache, batch.block_tables, batch.context_lens, batch.cu_seqlens_q,
            min_queries=2, is_plan_older=not layer.is_first,
        )  # fmt: skip

    return attention_prefill


def _attention_sizes(context: BindContext, window: int | None) -> AttentionSizes:
    model, limits = context.spec.model, context.on_device.limits
    return AttentionSizes(
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        block_size=limits.block_size,
        max_batch=limits.max_seqs,
        max_context_len=limits.max_context_len,
        sliding_window=window,
        batch_invariant=limits.batch_invariant,
    )
