"""Cases of rotation and the append to the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.layers import AttentionProjection, HeadSpec, linear_of
from tinyvllm.testing.case import EPS, Bench, Case
from tinyvllm.testing.numbers import (
    Float64,
    bf16,
    f64,
    rms_norm_error,
    rope_error,
    rounded,
)
from tinyvllm.testing.parameters import Parameters
from tinyvllm.testing.step import random_step


class RopeAppendCase(Case):
    """Head norms, rotation and append; every slot that is not this step's must stay as it was."""

    op = "rope_append"

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.step = random_step(parameters, self.rng, has_step_in_cache=False)
        m = self.model
        self.num_real = self.step.batch.num_tokens
        self.num_columns = (m.num_heads + 2 * m.num_kv_heads) * m.head_dim
        q_norm, k_norm = (bf16(self.rng.uniform(0.5, 1.5, m.head_dim)) for _ in range(2))
        has_norms = parameters.has_qk_norm
        self.projection = AttentionProjection(
            qkv=linear_of(np.zeros((1, 1), np.float32)),
            rotary=self.step.rotary,
            num_heads=m.num_heads,
            num_kv_heads=m.num_kv_heads,
            head_dim=m.head_dim,
            q_norm=self.norm_value(q_norm) if has_norms else None,
            k_norm=self.norm_value(k_norm) if has_norms else None,
        )
        self.qkv = bf16(self.rng.standard_normal((parameters.num_rows, self.num_columns)))

    @classmethod
    def head_spec(cls, parameters: Parameters) -> HeadSpec:
        """The model's."""
        m = parameters.model
        return HeadSpec(m.num_heads, m.num_kv_heads, m.head_dim, parameters.has_qk_norm)

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """Queries of the real rows, and the cache; rows of padding compute something and store nothing."""
        projection = bench.projection(self.projection, self.projection.qkv)
        return self.results(bench, lambda query, cache, batch: op(
            query, cache, bench.rows(self.qkv, self.num_real), projection, batch
        ))  # fmt: skip

    def results(self, bench: Bench, call: Callable[[Any, LayerCache, BatchTensors], None]) -> Mapping[str, Any]:
        """What a call with these outputs and this step gave."""
        num_rows = self.parameters.num_rows if bench.is_padded else self.num_real
        query = bench.poisoned((num_rows, self.projection.num_heads, self.projection.head_dim))
        cache = bench.cache(self.step.cache)
        call(query, cache, bench.batch(self.step, is_decode=self.parameters.is_decode))
        return {"query": query[: self.num_real], "key_cache": cache.key, "value_cache": cache.value}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """See :meth:`errors_of_heads`."""
        qkv = f64(self.qkv[: self.num_real])
        return self.errors_of_heads(qkv, np.zeros_like(qkv), roundoff)

    def errors_of_heads(self, qkv: Float64, qkv_error: Float64, roundoff: float) -> Mapping[str, Any]:
        """Of queries and cache, where the projections' results are off by ``qkv_error``."""
        p = self.projection
        heads, errors = (each.reshape(len(qkv), -1, p.head_dim) for each in (qkv, qkv_error))
        ends = (p.num_heads, p.num_heads + p.num_kv_heads)
        (query, key, _), (query_error, key_error, value_error) = np.split(heads, ends, 1), np.split(errors, ends, 1)
        found = []
        for values, error, norm in ((query, query_error, p.q_norm), (key, key_error, p.k_norm)):
            if norm is None:
                found.append(rope_error(values, error))
                continue
            exact = self.norm_value(f64(norm.weight))
            rstd = 1 / np.sqrt((values**2).mean(axis=-1, keepdims=True) + EPS)
            normed = values * rstd * exact.weight
            found.append(rope_error(normed, rounded(normed, rms_norm_error(values, exact, error), roundoff)))
        return {"query": found[0], "key_cache": self._in_cache(found[1]), "value_cache": self._in_cache(value_error)}

    def _in_cache(self, error: Float64) -> Float64:
        """The errors of keys or values where their slots are; 0 elsewhere."""
        placed = np.zeros(self.step.cache.key.shape)
        blocks, offsets = divmod(self.step.batch.slot_mapping, self.parameters.block_size)
        placed[blocks, :, offsets] = error
        return placed
