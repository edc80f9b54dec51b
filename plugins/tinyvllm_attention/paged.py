"""The CPU's attention over the paged KV cache: as fast as NumPy goes, or bit-equal in any company."""

from __future__ import annotations

from typing import Any

from tinyvllm.batch import Batch, Float32
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import API_VERSION as INTERFACE_VERSION
from tinyvllm.interfaces import Attention, AttentionCall, AttentionSpec, Plugin, PluginContext
from tinyvllm.reference.kv_append import kv_append
from tinyvllm_attention.grouped import Scratch, attend_in_groups, plan_groups
from tinyvllm_attention.tiled import attend_in_tiles, plan_tiles


class PagedAttention:
    """Sequences that compute one token go together, padded; chunks go one by one. ``batch_invariant``: tiles."""

    API_VERSION = INTERFACE_VERSION

    def __init__(self, context: PluginContext) -> None:
        """Keep what the plan needs to know."""
        self._model = context.model
        self._block_size = context.block_size
        self._group_size = context.model.num_heads // context.model.num_kv_heads
        self._batch_invariant = context.batch_invariant
        self._scratch = Scratch()

    def supports(self, spec: AttentionSpec) -> list[str]:
        """Reasons why not: another device or cache layout."""
        reasons = []
        if spec.device != "cpu":
            reasons.append(f"runs on the CPU, not on {spec.device}")
        if spec.kv_layout != "HND":
            reasons.append(f"reads the KV layout HND, not {spec.kv_layout}")
        return reasons

    def plan(self, batch: Batch) -> Any:
        """The step's rows sorted into groups of work, the same for every layer."""
        if self._batch_invariant:
            return plan_tiles(batch, self._group_size)
        return plan_groups(batch, self._block_size, self._model.num_kv_heads, self._model.head_dim)

    def forward(self, call: AttentionCall) -> Float32:
        """``[T, H, D]``."""
        if not call.kv_written:
            kv_append(call.key, call.value, call.cache, call.batch.slot_mapping)
        if self._batch_invariant:
            return attend_in_tiles(call, call.plan)
        return attend_in_groups(call, call.plan, self._scratch)


@hookimpl
def register_attention() -> list[Plugin[Attention]]:
    """The plugin ``paged``."""
    return [Plugin("paged", PagedAttention, description="paged KV cache, NumPy, on the CPU")]
