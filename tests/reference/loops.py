"""Every reference op once more: float64 loops written from the formulas, sharing nothing with what they judge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def dot(a: Any, b: Any) -> float:
    """Sum of products, exactly rounded."""
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def rms_norm(x: Any, weight: Any, eps: float) -> Float64:
    rows = np.asarray(x, np.float64).reshape(-1, len(weight))
    out = np.empty_like(rows)
    for t, row in enumerate(rows):
        scale = 1 / math.sqrt(dot(row, row) / len(row) + eps)
        for i, value in enumerate(row):
            out[t, i] = value * scale * float(weight[i])
    return out.reshape(np.shape(x))


def linear(x: Any, weight: Any, bias: Any) -> Float64:
    out = np.empty((len(x), weight.shape[1]))
    for t in range(len(x)):
        for j in range(weight.shape[1]):
            out[t, j] = dot(x[t], weight[:, j]) + (0.0 if bias is None else float(bias[j]))
    return out


def rope(x: Any, positions: Any, inverse_frequencies: Any) -> Float64:
    """Pairs (i, i + D/2) as complex numbers, turned by position * frequency."""
    out = np.empty(x.shape)
    half = x.shape[-1] // 2
    for t, n, i in np.ndindex(x.shape[0], x.shape[1], half):
        angle = float(positions[t]) * float(inverse_frequencies[i])
        turned = complex(float(x[t, n, i]), float(x[t, n, i + half])) * complex(math.cos(angle), math.sin(angle))
        out[t, n, i], out[t, n, i + half] = turned.real, turned.imag
    return out


def silu_mul(gate_up: Any) -> Float64:
    half = gate_up.shape[-1] // 2
    out = np.empty((len(gate_up), half))
    for t, i in np.ndindex(*out.shape):
        gate, up = float(gate_up[t, i]), float(gate_up[t, half + i])
        sigmoid = 1 / (1 + math.exp(-gate)) if gate >= 0 else math.exp(gate) / (1 + math.exp(gate))
        out[t, i] = gate * sigmoid * up
    return out


def gelu_mul(gate_up: Any) -> Float64:
    half = gate_up.shape[-1] // 2
    out = np.empty((len(gate_up), half))
    for t, i in np.ndindex(*out.shape):
        gate, up = float(gate_up[t, i]), float(gate_up[t, half + i])
        out[t, i] = gate / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up
    return out


def attention(query: Any, keys: Any, values: Any, scale: float) -> Float64:
    """One query ``[D]`` over ``[S, D]`` keys and values."""
    scores = [scale * dot(query, key) for key in keys]
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    total = math.fsum(weights)
    return np.array([dot(weights, values[:, d]) / total for d in range(values.shape[1])])
