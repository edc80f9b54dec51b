"""Cases of attention over the paged cache of a device: unseen slots are NaN, rows that are not computed stay NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinyvllm.batch import LayerCache
from tinyvllm.device import Buffer
from tinyvllm.ops.device_values import AttentionLayer
from tinyvllm.reference.paged_attention import paged_attention
from tinyvllm.testing.case import Bench, Case, Cast
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

    def is_computed(self) -> Array:
        """Whether the op computes each real row."""
        return np.ones(self.num_real, bool)

    def on_host(self, op: Callable[..., Any], cast: Cast) -> Mapping[str, Array]:
        """``out``, of the real rows; NaN where the op leaves them alone."""
        cache = LayerCache(cast(self.step.cache.key), cast(self.step.cache.value))
        out = self._attention(op, cast(self.query[: self.num_real]), cache)
        return {"out": np.where(self.is_computed()[:, None, None], out, np.nan)}

    def on_device(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Buffer]:
        """``out``, of the real rows."""
        out = bench.poisoned(self.query.shape)
        is_decode = self.parameters.is_decode and self.op != "attention_prefill"
        batch = bench.batch(self.step.padded, is_decode=is_decode)
        layer = AttentionLayer(self.parameters.sliding_window, is_first=True)
        op(out, bench.put(self.query), bench.cache(self.step.cache), batch, layer)
        return {"out": out.view((self.num_real, *out.shape[1:]))}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """Of scores, weights and sums."""
        cache, d = self.step.cache, self.model.head_dim
        query = f64(self.query[: self.num_real])
        norms = np.nan_to_num(np.linalg.norm(f64(cache.key), axis=-1)).max(axis=(0, 2))  # [K]
        largest = np.linalg.norm(query, axis=-1) * np.repeat(norms, query.shape[1] // len(norms))  # [T, H]
        absolute = LayerCache(f64(cache.key), np.abs(f64(cache.value)))
        of_absolutes = self._attention(paged_attention, query, absolute)
        longest = int(self.step.batch.context_lens.max())
        return {"out": attention_error(largest * d**-0.5, d, longest, of_absolutes, BF16_ROUNDOFF)}

    def _attention(self, op: Callable[..., Any], query: Array, cache: LayerCache) -> Float64:
        scale = self.model.head_dim**-0.5
        return f64(np.asarray(op(query, cache, self.step.batch, scale, self.parameters.sliding_window)))


class AttentionDecodeCase(AttentionCase):
    """Only sequences of one token."""

    op = "attention_decode"

    def is_computed(self) -> Array:
        """Where a sequence has one token."""
        counts = np.diff(self.step.batch.cu_seqlens_q)
        return np.repeat(counts == 1, counts)


class AttentionPrefillCase(AttentionCase):
    """Only sequences of several tokens."""

    op = "attention_prefill"

    def is_computed(self) -> Array:
        """Where a sequence has several tokens."""
        counts = np.diff(self.step.batch.cu_seqlens_q)
        return np.repeat(counts > 1, counts)
