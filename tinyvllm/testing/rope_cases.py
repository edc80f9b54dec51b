"""Cases of rotation and of the append to the cache, by themselves and together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinyvllm.batch import LayerCache
from tinyvllm.device import Buffer
from tinyvllm.layers import AttentionProjection, Linear, RotaryTable
from tinyvllm.testing.case import EPS, Bench, Case, Cast
from tinyvllm.testing.numbers import (
    Array,
    Float64,
    bf16,
    f64,
    rms_norm_error,
    rope_error,
    rounded,
    rows_of_many_scales,
)
from tinyvllm.testing.parameters import Parameters
from tinyvllm.testing.step import random_step


class RopeCase(Case):
    """Queries of a step."""

    op = "rope"

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.step = random_step(parameters, self.rng, has_step_in_cache=False)
        shape = (self.step.batch.num_tokens, self.model.num_heads, self.model.head_dim)
        self.x = rows_of_many_scales(self.rng, shape)

    def on_host(self, op: Callable[..., Any], cast: Cast) -> Mapping[str, Array]:
        """``out``."""
        table = RotaryTable(cast(self.step.rotary.cos), cast(self.step.rotary.sin))
        return {"out": op(cast(self.x), self.step.batch.positions, table)}

    def on_device(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Buffer]:
        """No device has it."""
        raise NotImplementedError

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """Three roundings of either product."""
        return {"out": rope_error(f64(self.x), np.zeros(self.x.shape))}


class KvAppendCase(Case):
    """Keys and values of a step."""

    op = "kv_append"
    is_exact = True

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.step = random_step(parameters, self.rng, has_step_in_cache=False)
        shape = (self.step.batch.num_tokens, self.model.num_kv_heads, self.model.head_dim)
        self.key, self.value = (rows_of_many_scales(self.rng, shape) for _ in range(2))

    def on_host(self, op: Callable[..., Any], cast: Cast) -> Mapping[str, Array]:
        """The cache."""
        cache = LayerCache(np.array(cast(self.step.cache.key)), np.array(cast(self.step.cache.value)))
        op(cast(self.key), cast(self.value), cache, self.step.batch.slot_mapping)
        return {"key_cache": cache.key, "value_cache": cache.value}

    def on_device(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Buffer]:
        """No device has it."""
        raise NotImplementedError

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """None: it copies."""
        return {"key_cache": 0.0, "value_cache": 0.0}


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
            qkv=Linear(None),
            rotary=self.step.rotary,
            num_heads=m.num_heads,
            num_kv_heads=m.num_kv_heads,
            head_dim=m.head_dim,
            q_norm=self.norm_value(q_norm) if has_norms else None,
            k_norm=self.norm_value(k_norm) if has_norms else None,
        )
        self.qkv = bf16(self.rng.standard_normal((parameters.num_rows, self.num_columns)))

    def host_projection(self, cast: Cast, qkv: Linear) -> AttentionProjection:
        """The projection as the CPU's ops take it."""
        p = self.projection
        return AttentionProjection(
            qkv=qkv,
            rotary=RotaryTable(cast(p.rotary.cos), cast(p.rotary.sin)),
            num_heads=p.num_heads,
            num_kv_heads=p.num_kv_heads,
            head_dim=p.head_dim,
            q_norm=None if p.q_norm is None else self.norm_value(cast(p.q_norm.weight)),
            k_norm=None if p.k_norm is None else self.norm_value(cast(p.k_norm.weight)),
        )

    def host_cache(self, cast: Cast) -> LayerCache:
        """A copy of the cache before the step."""
        return LayerCache(np.array(cast(self.step.cache.key)), np.array(cast(self.step.cache.value)))

    def on_host(self, op: Callable[..., Any], cast: Cast) -> Mapping[str, Array]:
        """Queries of the real rows, and the cache."""
        cache = self.host_cache(cast)
        projection = self.host_projection(cast, Linear(None))
        query, _, _ = op(cast(self.qkv[: self.num_real]), projection, cache, self.step.batch)
        return {"query": query, "key_cache": cache.key, "value_cache": cache.value}

    def on_device(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Buffer]:
        """The same; rows of padding compute something and store nothing."""
        p = self.projection
        cache = bench.cache(self.step.cache)
        query = bench.poisoned((self.parameters.num_rows, p.num_heads, p.head_dim))
        projection = bench.projection(p, bf16(np.zeros((1, 1))), None)
        batch = bench.batch(self.step.padded, is_decode=self.parameters.is_decode)
        op(query, cache, bench.put(self.qkv), projection, batch)
        real = query.view((self.num_real, *query.shape[1:]))
        return {"query": real, "key_cache": cache[0], "value_cache": cache[1]}

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
