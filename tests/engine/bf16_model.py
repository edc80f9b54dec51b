"""A decoder in float64, written from the formulas, and how far bfloat16 may lead its log-probabilities astray.

The oracle of ``test_device_engine``. It shares no code with what it judges: no cache, no batch, one sequence at a time,
every position at once.

The bound is computed, not chosen. A device rounds to bfloat16 wherever it stores a value; each such error lies within
half a unit in the last place. Errors that are independent and uniform there are sub-Gaussian with their own variance,
so to first order a log-probability is further than ``z`` standard deviations off with a chance below 2 exp(-z^2 / 2)
(Hoeffding 1963; for roundings: Higham & Mary 2019). The standard deviation is measured: the same network is run again
and again with a random error of that kind added to each value that a device may store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

Float64 = NDArray[np.float64]
Rounding = Callable[[Float64], Float64]

NUM_RUNS = 32
Z = 7.0
"""Standard deviations: a chance of 5e-11 for each number that is compared."""
_OF_THE_ESTIMATE = 1.5
"""A standard deviation from 32 runs is off by an eighth of itself as a rule, four times that almost never."""
_CPU = 2.0**-10
"""The CPU rounds to float32, 2**-16 times as much, but in every step of its sums."""


def exact(x: Float64) -> Float64:
    """Nothing is rounded."""
    return x


def disturbed(rng: np.random.Generator) -> Rounding:
    """Errors as rounding to bfloat16 makes them: uniform within half a unit in the last place."""

    def add(x: Float64) -> Float64:
        _, exponent = np.frexp(x)
        result: Float64 = x + rng.uniform(-0.5, 0.5, x.shape) * np.ldexp(1.0, exponent - 8)
        return result

    return add


@dataclass(frozen=True)
class Model:
    """Weights rounded to bfloat16, in float64; ``config`` is the checkpoint's."""

    config: dict[str, Any]
    weights: dict[str, Float64]
    adjacent_pairs: bool = False
    """Rotates the wrong pairs, for tests of the bound."""
    scale_factor: float = 1.0
    """Of the attention scores, likewise."""
    shift: int = 0
    """Of the positions within the rotary table for queries, likewise."""

    @classmethod
    def read(cls, folder: Path, **faults: Any) -> Model:
        """The checkpoint in ``folder``."""
        with safe_open(folder / "model.safetensors", "numpy") as file:
            weights = {
                name: file.get_tensor(name).astype(ml_dtypes.bfloat16).astype(np.float64)
                for name in file.keys()  # noqa: SIM118 - it is no mapping
            }
        return cls(json.loads((folder / "config.json").read_text()), weights, **faults)

    def logprobs(self, tokens: Sequence[int], rounded: Rounding = exact) -> Float64:
        """``[T, V]``: the distribution of the token after each of ``tokens``."""
        logits = self.logits(tokens, rounded)
        shifted = logits - logits.max(axis=1, keepdims=True)
        result: Float64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return result

    def logits(self, tokens: Sequence[int], rounded: Rounding = exact) -> Float64:
        """``[T, V]``, not normalised."""
        w, num_layers = self.weights, self.config["num_hidden_layers"]
        x = w["model.embed_tokens.weight"][np.asarray(tokens)]
        for i in range(num_layers):
            x = self._layer(x, f"model.layers.{i}", rounded)
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        result: Float64 = rounded(self._norm(x, "model.norm.weight")) @ head.T
        return result

    def bound(self, tokens: Sequence[int], seed: int = 0) -> Float64:
        """``[T, V]``: how far a bfloat16 device may be from the CPU."""
        rng = np.random.default_rng(seed)
        right = self.logprobs(tokens)
        runs = [self.logprobs(tokens, disturbed(rng)) - right for _ in range(NUM_RUNS)]
        deviation: Float64 = np.sqrt(np.mean(np.square(runs), axis=0))
        return Z * _OF_THE_ESTIMATE * (1 + _CPU) * deviation

    def _layer(self, x: Float64, prefix: str, rounded: Rounding) -> Float64:
        normed = rounded(self._norm(x, f"{prefix}.input_layernorm.weight"))
        mixed = self._attention(normed, f"{prefix}.self_attn", rounded)
        x = rounded(x + self._linear(mixed, f"{prefix}.self_attn.o_proj"))
        normed = rounded(self._norm(x, f"{prefix}.post_attention_layernorm.weight"))
        gate = rounded(self._linear(normed, f"{prefix}.mlp.gate_proj"))
        up = rounded(self._linear(normed, f"{prefix}.mlp.up_proj"))
        active = rounded(gate / (1 + np.exp(-gate)) * up)
        return rounded(x + self._linear(active, f"{prefix}.mlp.down_proj"))

    def _attention(self, x: Float64, prefix: str, rounded: Rounding) -> Float64:
        """``[T, H * D]``."""
        num_heads, num_kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        num_tokens, d = len(x), self.config.get("head_dim") or self.config["hidden_size"] // num_heads
        q, k, v = (
            rounded(self._linear(x, f"{prefix}.{name}_proj")).reshape(num_tokens, -1, d).swapaxes(0, 1)
            for name in "qkv"
        )
        if f"{prefix}.q_norm.weight" in self.weights:
            q, k = (self._norm(each, f"{prefix}.{name}_norm.weight") for each, name in ((q, "q"), (k, "k")))
        positions = np.arange(num_tokens)
        q, k = rounded(self._rotate(q, positions + self.shift)), rounded(self._rotate(k, positions))
        k, v = (np.repeat(each, num_heads // num_kv_heads, axis=0) for each in (k, v))  # [H, T, D]
        scores = q @ k.swapaxes(1, 2) * self.scale_factor / math.sqrt(d)  # [H, T, T]
        ago = positions[:, None] - positions
        window = self.config.get("sliding_window") or num_tokens
        scores = np.where((ago >= 0) & (ago < window), scores, -np.inf)
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        # The sum is that of the weights before they are rounded.
        mixed = rounded(p) @ v / p.sum(axis=2, keepdims=True)
        return rounded(mixed.swapaxes(0, 1).reshape(num_tokens, -1))

    def _rotate(self, x: Float64, positions: NDArray[np.int_]) -> Float64:
        half = x.shape[-1] // 2
        angles = positions[:, None] * self.config["rope_theta"] ** (-np.arange(half) / half)  # [T, D/2]
        cos, sin = np.cos(angles), np.sin(angles)
        if self.adjacent_pairs:
            even, odd = x[..., ::2], x[..., 1::2]
            return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def _norm(self, x: Float64, name: str) -> Float64:
        scale = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        result: Float64 = x / scale * self.weights[name]
        return result

    def _linear(self, x: Float64, name: str) -> Float64:
        result: Float64 = x @ self.weights[f"{name}.weight"].T
        return result + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else result
