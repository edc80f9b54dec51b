"""Cases of attention over the paged cache: what no query may see is NaN, or huge where it lies before a window."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tinyvllm.batch import Batch, BatchTensors, LayerCache, protected
from tinyvllm.interfaces import AttentionCall, AttentionSpec, BoundAttention
from tinyvllm.reference.paged_attention import paged_attention
from tinyvllm.testing.case import Bench, Case
from tinyvllm.testing.numbers import BF16_ROUNDOFF, Array, Float64, attention_error, bf16, f64
from tinyvllm.testing.parameters import Parameters
from tinyvllm.testing.step import random_step


class AttentionCase(Case):
    """Peaked softmaxes over ragged contexts in permuted blocks."""

    op = "attention"

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.step = random_step(parameters, self.rng, has_step_in_cache=True)
        shape = (parameters.num_rows, self.model.num_heads, self.model.head_dim)
        self.query = bf16(self.rng.standard_normal(shape) * 2)
        self.num_real = self.step.batch.num_tokens

    def spec(self, device_name: str) -> AttentionSpec:
        """What the attention must be able to do."""
        m = self.model
        return AttentionSpec(
            device=device_name,
            num_heads=m.num_heads,
            num_kv_heads=m.num_kv_heads,
            head_dim=m.head_dim,
            block_size=self.parameters.block_size,
            dtype="float32" if device_name == "cpu" else "bfloat16",
            scale=m.head_dim**-0.5,
            sliding_window=self.parameters.sliding_window,
            batch_invariant=self.parameters.batch_invariant,
        )

    def attend(self, attention: BoundAttention) -> Callable[..., None]:
        """What :meth:`run` calls: a step of one layer, by an attention that is bound to the case's spec."""

        def attend(out: Any, query: Any, cache: LayerCache, batch: BatchTensors, host: Batch, bench: Bench) -> None:
            host_plan = attention.host_plan(host.read_only())
            plan = attention.plan(batch, None if host_plan is None else bench.put(host_plan))
            spec = self.spec(bench.device.name)
            attention.forward(AttentionCall(out, protected(query), cache, batch, plan, spec, is_first=True))

        return attend

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``out``, of the real rows."""
        query = bench.rows(self.query, self.num_real)
        out, cache = bench.poisoned(query.shape), bench.cache(self.step.cache)
        batch = bench.batch(self.step, is_decode=self.parameters.is_decode)
        op(out, query, cache, batch, self.step.batch, bench)
        return {"out": out[: self.num_real]}

    def last_row(self) -> Case | None:
        """The last sequence alone, over the same cache, if all compute one token."""
        if not self.parameters.is_decode:
            return None
        alone, batch = copy.copy(self), self.step.batch
        last, end = slice(self.num_real - 1, self.num_real), np.array([0, 1], np.int32)
        one = Batch(
            batch.token_ids[last], batch.positions[last], end, batch.context_lens[last], batch.block_tables[last],
            batch.slot_mapping[last],
        )  # fmt: skip
        alone.query, alone.num_real = self.query[last], 1
        alone.step = replace(self.step, batch=one, padded=one)
        return alone

    def expected(self) -> Mapping[str, Float64]:
        """By the definition, in float64."""
        cache = self.step.cache
        return {"out": self._defined(f64(self.query), LayerCache(f64(cache.key), f64(cache.value)))}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """Of scores, weights and sums."""
        cache, d = self.step.cache, self.model.head_dim
        query = f64(self.query[: self.num_real])
        norms = np.nan_to_num(np.linalg.norm(f64(cache.key), axis=-1)).max(axis=(0, 2))  # [K]
        largest = np.linalg.norm(query, axis=-1) * np.repeat(norms, query.shape[1] // len(norms))  # [T, H]
        of_absolutes = self._defined(query, LayerCache(f64(cache.key), np.abs(f64(cache.value))))
        longest = int(self.step.batch.context_lens.max())
        return {"out": attention_error(largest * d**-0.5, d, longest, of_absolutes, BF16_ROUNDOFF)}

    def _defined(self, query: Array, cache: LayerCache) -> Float64:
        scale, window = self.model.head_dim**-0.5, self.parameters.sliding_window
        rows: Any = query[: self.num_real]
        return f64(paged_attention(rows, cache, self.step.batch, scale, window))
