"""Cases of the simple ops that know neither positions nor a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinyvllm.layers import ROWS, LinearSpec
from tinyvllm.testing.case import Bench, Case, Mismatch
from tinyvllm.testing.numbers import (
    F32_ROUNDOFF,
    Array,
    Float64,
    bf16,
    dot_error,
    f64,
    linear_error,
    rms_norm_error,
    rows_of_many_scales,
    silu_mul_error,
    weights,
)
from tinyvllm.testing.parameters import Parameters


def head_of(parameters: Parameters) -> LinearSpec:
    """The projection to the vocabulary."""
    return LinearSpec(ROWS, parameters.model.hidden_size, parameters.model.vocab_size, has_bias=False)


class EmbeddingCase(Case):
    """Rows of any bits."""

    op = "embedding"
    row_arrays = ("ids",)
    is_exact = True

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.table = rows_of_many_scales(self.rng, (self.model.vocab_size, self.model.hidden_size))
        self.ids = self.rng.integers(0, self.model.vocab_size, parameters.num_rows).astype(np.int32)

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``out``."""
        out = bench.poisoned((len(self.ids), self.model.hidden_size))
        op(out, bench.put(self.ids), bench.put(self.table))
        return {"out": out}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """None: it copies."""
        return {"out": 0.0}


class RmsNormCase(Case):
    """Rows of many scales, zero and huge among them."""

    op = "rms_norm"
    row_arrays = ("x",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.x = rows_of_many_scales(self.rng, (parameters.num_rows, self.model.hidden_size))
        special = self.rng.random(parameters.num_rows)
        self.x[special < 0.05] = 0
        self.x[special > 0.95] *= bf16(1e12)
        self.weight = rows_of_many_scales(self.rng, (1, self.model.hidden_size))[0]

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``out``."""
        out = bench.poisoned(self.x.shape)
        op(out, bench.put(self.x), bench.norm(self.weight))
        return {"out": out}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """That of the sum of squares."""
        return {"out": rms_norm_error(f64(self.x), self.norm_value(f64(self.weight)))}


class LinearCase(Case):
    """The output projection's sizes, with or without bias."""

    op = "linear"
    row_arrays = ("x",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        size = self.model.num_heads * self.model.head_dim
        self.x = rows_of_many_scales(self.rng, (parameters.num_rows, size))
        self.weight = rows_of_many_scales(self.rng, (self.model.hidden_size, size))
        self.bias = rows_of_many_scales(self.rng, (1, self.model.hidden_size))[0] if parameters.has_bias else None

    @classmethod
    def linear_spec(cls, parameters: Parameters) -> LinearSpec:
        """From heads to the residual stream."""
        m = parameters.model
        return LinearSpec(ROWS, m.num_heads * m.head_dim, m.hidden_size, parameters.has_bias)

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``out``."""
        out = bench.poisoned((len(self.x), len(self.weight)))
        op(out, bench.put(self.x), bench.linear(self.weight, self.bias))
        return {"out": out}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """That of the sums."""
        x = f64(self.x)
        return {"out": linear_error(x, np.zeros_like(x), self.weight, self.bias)}


class AddCase(Case):
    """Two matrices."""

    op = "add"
    row_arrays = ("residual", "x")

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        shape = (parameters.num_rows, self.model.hidden_size)
        self.residual, self.x = (rows_of_many_scales(self.rng, shape) for _ in range(2))

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``residual``."""
        residual = bench.put(self.residual)
        op(residual, bench.put(self.x))
        return {"residual": residual}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """One rounding to float32."""
        return {"residual": F32_ROUNDOFF * np.abs(expected["residual"])}


class SiluMulCase(Case):
    """Gates of many scales."""

    op = "silu_mul"
    row_arrays = ("gate_up",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.gate_up = rows_of_many_scales(self.rng, (parameters.num_rows, 2 * self.model.intermediate_size))

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``out``."""
        out = bench.poisoned((len(self.gate_up), self.model.intermediate_size))
        op(out, bench.put(self.gate_up))
        return {"out": out}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """That of the exponential."""
        gate, up = np.split(f64(self.gate_up), 2, axis=1)
        return {"out": silu_mul_error(gate, up, np.zeros_like(gate), np.zeros_like(up))}


class GeluMulCase(SiluMulCase):
    """Gates of many scales."""

    op = "gelu_mul"

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """That of the tangent, next to one where the gate is far below zero, and of its argument."""
        gate, up = np.split(f64(self.gate_up), 2, axis=1)
        return {"out": 16 * F32_ROUNDOFF * np.abs(gate * up)}


class ScaleCase(Case):
    """A matrix, and a factor that is no power of two."""

    op = "scale"
    row_arrays = ("x",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.x = rows_of_many_scales(self.rng, (parameters.num_rows, self.model.hidden_size))
        self.factor = float(self.rng.uniform(0.1, 40))

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``x``."""
        x = bench.put(self.x)
        op(x, self.factor)
        return {"x": x}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """The factor's rounding to float32, and the product's."""
        return {"x": 2 * F32_ROUNDOFF * np.abs(expected["x"])}


class NormColumnsCase(Case):
    """Queries or keys among queries, keys and values; the other columns must stay as they are."""

    op = "norm_columns"
    row_arrays = ("x",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        m = self.model
        query, key = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
        self.first, size = (0, query) if self.rng.random() < 0.5 else (query, key)
        self.x = rows_of_many_scales(self.rng, (parameters.num_rows, query + 2 * key))
        self.weight = rows_of_many_scales(self.rng, (1, size))[0]

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``x``."""
        x = bench.put(self.x)
        op(x, self.first, bench.norm(self.weight))
        return {"x": x}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """That of the sum of squares in the columns; none elsewhere."""
        error = np.zeros(self.x.shape)
        columns = slice(self.first, self.first + len(self.weight))
        error[:, columns] = rms_norm_error(f64(self.x[:, columns]), self.norm_value(f64(self.weight)))
        return {"x": error}


class LmHeadCase(Case):
    """A vocabulary that fills no tile."""

    op = "lm_head"
    row_arrays = ("x",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        num_rows = min(parameters.num_rows, parameters.max_logits_rows)
        self.x = rows_of_many_scales(self.rng, (num_rows, self.model.hidden_size))
        self.weight = weights(self.rng, self.model.vocab_size, self.model.hidden_size)

    @classmethod
    def linear_spec(cls, parameters: Parameters) -> LinearSpec:
        """From the residual stream to the vocabulary."""
        return head_of(parameters)

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``logits``."""
        logits = bench.poisoned((len(self.x), self.model.vocab_size), np.float32)
        op(logits, bench.put(self.x), bench.linear(self.weight))
        return {"logits": logits}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """That of the sums; logits are not rounded to bfloat16."""
        magnitude = np.abs(f64(self.x)) @ np.abs(f64(self.weight)).T
        return {"logits": dot_error(magnitude, self.x.shape[1] + 8)}


class ArgmaxCase(Case):
    """Many equals; rows with NaN and infinities."""

    op = "argmax"
    row_arrays = ("logits",)

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        num_rows, v = min(parameters.num_rows, parameters.max_logits_rows), self.model.vocab_size
        self.logits = self.rng.integers(-20, 20, (num_rows, v)).astype(np.float32)
        spoiled = self.rng.choice([np.nan, np.inf, -np.inf, 0, 0, 0], num_rows)
        self.logits[np.arange(num_rows), self.rng.integers(0, v, num_rows)] = spoiled

    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """``token_ids``."""
        token_ids = bench.poisoned((len(self.logits),), np.int32)
        op(token_ids, bench.put(self.logits))
        return {"token_ids": token_ids}

    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """None."""
        return {"token_ids": 0.0}

    def mismatches(self, got: Mapping[str, Array], roundoff: float) -> list[Mismatch]:
        """Exactly equal."""
        expected = self.expected()["token_ids"]
        wrong = np.flatnonzero(got["token_ids"] != expected)
        if not len(wrong):
            return []
        row = int(wrong[0])
        return [Mismatch("token_ids", (row,), float(got["token_ids"][row]), float(expected[row]), 0.0, len(wrong),
                         len(expected))]  # fmt: skip
