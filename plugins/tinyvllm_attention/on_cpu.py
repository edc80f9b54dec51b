"""Attention over the paged KV cache in NumPy: as fast as it goes, or bit-equal in any company."""

from __future__ import annotations

from typing import Any

from tinyvllm.plugin import AttentionCall, AttentionContext, Batch, BatchTensors, Tensor
from tinyvllm.shapes import Int32
from tinyvllm_attention.grouped import Groups, Scratch, attend_in_groups, plan_groups
from tinyvllm_attention.tiled import Items, attend_in_tiles, plan_tiles


class PagedOnCpu:
    """Sequences that compute one token go together, padded; chunks go one by one. ``batch_invariant``: tiles.

    Args:
        context: of the engine.
    """

    def __init__(self, context: AttentionContext) -> None:
        self._batch_invariant = context.workspace.limits.batch_invariant
        self._block_size = context.workspace.limits.block_size
        self._kinds = {(spec.num_heads, spec.num_kv_heads, spec.head_dim) for spec in context.specs}
        self._scratch = Scratch()

    def host_plan(self, batch: Batch) -> Int32 | None:
        """None: the plan is made of the same arrays."""
        return None

    def plan(self, batch: BatchTensors, host_plan: Tensor | None) -> dict[tuple[int, int, int], Groups | Items]:
        """The step's rows sorted into groups of work, for each kind of heads that the model has."""
        return {kind: self._plan_of(batch, *kind) for kind in self._kinds}

    def forward(self, call: AttentionCall) -> None:
        """Write ``call.out``."""
        spec = call.spec
        plan: Any = call.plan[spec.num_heads, spec.num_kv_heads, spec.head_dim]
        if self._batch_invariant:
            attend_in_tiles(call, plan)
        else:
            attend_in_groups(call, plan, self._scratch)

    def _plan_of(self, batch: BatchTensors, num_heads: int, num_kv_heads: int, head_dim: int) -> Groups | Items:
        if self._batch_invariant:
            return plan_tiles(batch, num_heads // num_kv_heads)
        return plan_groups(batch, self._block_size, num_kv_heads, head_dim)
