"""Attention over the paged KV cache by CUDA kernels: one for sequences of one token, one for those of several."""

from __future__ import annotations

from typing import Any

from tinyvllm.plugin import AttentionCall, AttentionContext, AttentionSpec, Batch, BatchTensors, StepLimits, Tensor
from tinyvllm.shapes import Int32
from tinyvllm_attention.gpu.attention_decode import AttentionDecode
from tinyvllm_attention.gpu.attention_prefill import AttentionPrefill
from tinyvllm_attention.gpu.attention_sizes import BLOCK_SIZES, HEAD_DIMS, MAX_GROUP_SIZE, AttentionSizes


class PagedOnGpu:
    """A launcher of each kernel for each kind of layer, made with its workspace.

    Args:
        context: of the engine.
    """

    def __init__(self, context: AttentionContext) -> None:
        device, limits = context.workspace.gpu, context.workspace.limits
        sizes = {spec: _sizes(spec, limits) for spec in context.specs}
        self._decode = {spec: AttentionDecode(device, sizes=each) for spec, each in sizes.items()}
        self._prefill = {spec: AttentionPrefill(device, sizes=each) for spec, each in sizes.items()}

    def host_plan(self, batch: Batch) -> Int32 | None:
        """None: each block of a kernel finds its own work in the step's arrays."""
        return None

    def plan(self, batch: BatchTensors, host_plan: Tensor | None) -> None:
        """Nothing."""

    def forward(self, call: AttentionCall) -> None:
        """Queue ``call.out``: the sequences of one token, then those of several."""
        batch: Any = call.batch
        caches = call.cache.key, call.cache.value
        if batch.has_decodes:
            self._decode[call.spec](
                call.out, call.query, *caches, batch.block_tables, batch.context_lens,
                cu_seqlens_q=batch.cu_seqlens_q, is_plan_older=not call.is_first,
            )  # fmt: skip
        if batch.cu_seqlens_q is not None:
            self._prefill[call.spec](
                call.out, call.query, *caches, batch.block_tables, batch.context_lens, batch.cu_seqlens_q,
                min_queries=2, is_plan_older=not call.is_first,
            )  # fmt: skip


def reasons_on_gpu(spec: AttentionSpec) -> list[str]:
    """Why the kernels cannot serve ``spec``; empty if they can."""
    reasons = []
    if spec.head_dim not in HEAD_DIMS:
        reasons.append(f"knows head_dim {', '.join(map(str, HEAD_DIMS))}, not {spec.head_dim}")
    if spec.num_heads // spec.num_kv_heads > MAX_GROUP_SIZE:
        group = spec.num_heads // spec.num_kv_heads
        reasons.append(f"at most {MAX_GROUP_SIZE} query heads share a KV head, not {group}")
    if spec.block_size not in BLOCK_SIZES:
        reasons.append(f"knows cache.block_size {', '.join(map(str, BLOCK_SIZES))}, not {spec.block_size}")
    if spec.dtype != "bfloat16":
        reasons.append(f"computes with bfloat16, not {spec.dtype}")
    return reasons


def _sizes(spec: AttentionSpec, limits: StepLimits) -> AttentionSizes:
    return AttentionSizes(
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        block_size=spec.block_size,
        max_batch=limits.max_seqs,
        max_context_len=limits.max_context_len,
        scale=spec.scale,
        sliding_window=spec.sliding_window,
        batch_invariant=limits.batch_invariant,
    )
