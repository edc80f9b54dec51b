"""Cases of the fused ops. A bound covers the composition as well, which rounds between the parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinyvllm.layers import ROWS, LinearSpec, Norm
from tinyvllm.reference.rms_norm import rms_norm
from tinyvllm.testing.case import Bench, Case, Mismatch
from tinyvllm.testing.numbers import (
    F32_ROUNDOFF,
    Array,
    Float64,
    bf16,
    f64,
    linear_error,
    rms_norm_error,
    rounded,
    rows_of_many_scales,
    silu_mul_error,
    weights,
)
from tinyvllm.testing.parameters import MAX_SEQUENCES, Parameters
from tinyvllm.testing.rope_cases import RopeAppendCase
from tinyvllm.testing.simple_cases import head_of


def normed(x: Array, norm: Norm, roundoff: float) -> tuple[Float64, Float64]:
    """The normalised rows, and most that they are off."""
    values = f64(rms_norm(f64(x), norm))  # type: ignore[arg-type]  # the definition in float64
    return values, rounded(values, rms_norm_error(f64(x), norm), roundoff)


class QkvCase(RopeAppendCase):
    """Norm, projection, rotation, append."""

    op = "rms_norm_qkv_rope_append"

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        e = self.model.hidden_size
        self.x = rows_of_many_scales(self.rng, (parameters.num_rows, e))
        self.norm = bf16(self.rng.uniform(0.5, 1.5, e))
        self.weight = weights(self.rng, self.num_columns, e)
        self.bias = bf16(self.rng.standard_normal(self.num_columns)) if parameters.has_bias else None

    @classmethod
    def linear_spec(cls, parameters: Parameters) -> LinearSpec:
        """From the residual stream to queries, keys and values."""
        m = parameters.model
        return LinearSpec(ROWS, m.hidden_size, (m.num_heads + 2 * m.num_kv_heads) * m.head_dim, parameters.has_bias)

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """Queries of the real rows, and the cache; rows of padding compute something and store nothing."""
        projection = bench.projection(self.projection, bench.linear(self.weight, self.bias))
        return self.results(bench, lambda query, cache, batch: op(
            query, cache, bench.rows(self.x, self.num_real), bench.norm(self.norm), projection, batch
        ))  # fmt: skip

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """Through norm, projection and rotation."""
        x, x_error = normed(self.x[: self.num_real], self.norm_value(f64(self.norm)), roundoff)
        qkv = x @ f64(self.weight).T + (0 if self.bias is None else f64(self.bias))
        error = rounded(qkv, linear_error(x, x_error, self.weight, self.bias), roundoff)
        return self.errors_of_heads(qkv, error, roundoff)


class LinearResidualCase(Case):
    """The down projection's sizes."""

    op = "linear_residual"
    row_arrays = ("x", "residual")

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        e, f = self.model.hidden_size, self.model.intermediate_size
        self.x = rows_of_many_scales(self.rng, (parameters.num_rows, f))
        self.residual = rows_of_many_scales(self.rng, (parameters.num_rows, e))
        self.weight = weights(self.rng, e, f)
        self.bias = bf16(self.rng.standard_normal(e)) if parameters.has_bias else None

    @classmethod
    def linear_spec(cls, parameters: Parameters) -> LinearSpec:
        """From the MLP's width to the residual stream."""
        m = parameters.model
        return LinearSpec(ROWS, m.intermediate_size, m.hidden_size, parameters.has_bias)

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``residual``."""
        residual = bench.put(self.residual)
        op(residual, bench.put(self.x), bench.linear(self.weight, self.bias))
        return {"residual": residual}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """The projection's, and one sum."""
        x = f64(self.x)
        product = x @ f64(self.weight).T + (0 if self.bias is None else f64(self.bias))
        error = rounded(product, linear_error(x, np.zeros_like(x), self.weight, self.bias), roundoff)
        magnitude = np.abs(product) + error + np.abs(f64(self.residual))
        return {"residual": error + 2 * F32_ROUNDOFF * magnitude}


class GateUpCase(Case):
    """The first half of the MLP."""

    op = "rms_norm_gate_up_silu"
    row_arrays = ("x",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        e = self.model.hidden_size
        self.x = rows_of_many_scales(self.rng, (parameters.num_rows, e))
        self.norm = bf16(self.rng.uniform(0.5, 1.5, e))
        self.weight = weights(self.rng, 2 * self.model.intermediate_size, e)

    @classmethod
    def linear_spec(cls, parameters: Parameters) -> LinearSpec:
        """From the residual stream to gate and up."""
        m = parameters.model
        return LinearSpec(ROWS, m.hidden_size, 2 * m.intermediate_size, has_bias=False)

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``out``."""
        out = bench.poisoned((len(self.x), self.model.intermediate_size))
        op(out, bench.put(self.x), bench.norm(self.norm), bench.linear(self.weight))
        return {"out": out}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """Through norm, projection and activation."""
        x, x_error = normed(self.x, self.norm_value(f64(self.norm)), roundoff)
        product = x @ f64(self.weight).T
        error = rounded(product, linear_error(x, x_error, self.weight), roundoff)
        (gate, up), (gate_error, up_error) = np.split(product, 2, 1), np.split(error, 2, 1)
        return {"out": silu_mul_error(gate, up, gate_error, up_error)}


class NormHeadCase(Case):
    """Final norm and logits."""

    op = "rms_norm_lm_head"
    row_arrays = ("x",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        e = self.model.hidden_size
        self.x = rows_of_many_scales(self.rng, (min(parameters.num_rows, self.max_rows()), e))
        self.norm = bf16(self.rng.uniform(0.5, 1.5, e))
        self.weight = weights(self.rng, self.model.vocab_size, e)

    @classmethod
    def linear_spec(cls, parameters: Parameters) -> LinearSpec:
        """From the residual stream to the vocabulary."""
        return head_of(parameters)

    def max_rows(self) -> int:
        """Maximum number of rows of a call."""
        return self.parameters.max_logits_rows

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``logits``."""
        logits = bench.poisoned((len(self.x), self.model.vocab_size), np.float32)
        op(logits, bench.put(self.x), bench.norm(self.norm), bench.linear(self.weight))
        return {"logits": logits}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """Through norm and projection; logits are not rounded to bfloat16."""
        x, x_error = normed(self.x, self.norm_value(f64(self.norm)), roundoff)
        return {"logits": linear_error(x, x_error, self.weight)}


class HeadArgmaxCase(NormHeadCase):
    """Final norm and the most likely token: any whose logit may be the largest, given how far logits may be off."""

    op = "lm_head_argmax"

    def max_rows(self) -> int:
        """More than logits are held of."""
        return max(MAX_SEQUENCES, self.parameters.max_logits_rows)

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``token_ids``."""
        token_ids = bench.poisoned((len(self.x),), np.int32)
        op(token_ids, bench.put(self.x), bench.norm(self.norm), bench.linear(self.weight))
        return {"token_ids": token_ids}

    def mismatches(self, got: Mapping[str, Array], roundoff: float) -> list[Mismatch]:
        """Tokens whose logit cannot be the largest."""
        x, x_error = normed(self.x, self.norm_value(f64(self.norm)), roundoff)
        logits, error = x @ f64(self.weight).T, linear_error(x, x_error, self.weight)
        least = (logits - error).max(axis=1)
        token_ids, rows = got["token_ids"], np.arange(len(x))
        inside = (token_ids >= 0) & (token_ids < self.model.vocab_size)
        safe = np.where(inside, token_ids, 0)
        wrong = np.flatnonzero(~inside | ((logits + error)[rows, safe] < least))
        if not len(wrong):
            return []
        row = int(wrong[0])
        return [Mismatch("token_ids", (row,), float(token_ids[row]), float(logits[row].argmax()), 0.0, len(wrong),
                         len(rows))]  # fmt: skip
