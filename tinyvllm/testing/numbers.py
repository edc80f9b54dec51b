"""Numbers of bfloat16: inputs that matter, and how far a result may be from its definition.

Bounds are computed from the lengths of sums and the magnitudes in them (Higham 2002, 3.1); none is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tinyvllm.layers import Norm

BF16 = np.dtype(ml_dtypes.bfloat16)
BF16_ROUNDOFF = 2.0**-8
"""Most that rounding to bfloat16 (8 significant bits) changes a number, relative."""
F32_ROUNDOFF = 2.0**-24
SMALLEST = 2.0**-126
"""Results below it may be flushed to zero."""
_EXP2_ERROR = 2.0**-22
_SILU_SLOPE = 1.1
_SECOND_ORDER = 1.25
"""Factor for the products of errors, where errors are below a tenth of what they belong to."""

Array = NDArray[Any]
Float64 = NDArray[np.float64]


def bf16(values: Any) -> Array:
    """Rounded to bfloat16."""
    return np.asarray(values, np.float32).astype(BF16)


def f64(values: Array) -> Float64:
    """The same values, exactly."""
    return values.astype(np.float64)


def rows_of_many_scales(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """bfloat16 normal values, each row at its own scale from 1e-4 to 1e4, with a few outliers of a hundred times."""
    values = rng.standard_normal(shape, np.float32)
    values *= 10.0 ** rng.uniform(-4, 4, (*shape[:-1], 1)).astype(np.float32)
    values[rng.random(shape, np.float32) < 0.01] *= 100
    return bf16(values)


def weights(rng: np.random.Generator, num_outputs: int, size: int) -> Array:
    """A bfloat16 matrix that keeps the scale of what it multiplies."""
    return bf16(rng.standard_normal((num_outputs, size), np.float32) * np.float32(size**-0.5))


def dot_error(magnitude: Float64, length: int) -> Float64:
    """Most that a float32 sum of ``length`` products in any order is off; ``magnitude`` is the sum of the absolutes.

    Twice the textbook bound: a tensor core truncates where others round.
    """
    return 2 * length * F32_ROUNDOFF * magnitude


def rounded(values: Float64, error: Float64, roundoff: float) -> Float64:
    """The error of ``values`` once they are rounded, ``roundoff`` relative; 0 where they are kept as they are."""
    return error * (1 + roundoff) + roundoff * np.abs(values)


def rms_norm_error(x: Float64, norm: Norm, x_error: Float64 | None = None) -> Float64:
    """Most that ``rms_norm`` is off, of rows that are themselves off by ``x_error``."""
    rstd = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + norm.eps)
    scale = rstd * np.abs(norm.weight)
    # The squares are all positive: a relative error of as many roundings, halved by the root; a few more around it.
    own: Float64 = (x.shape[-1] + 8) * F32_ROUNDOFF * np.abs(x) * scale
    if x_error is None:
        return own
    spread = np.sqrt((x_error**2).mean(axis=-1, keepdims=True)) * rstd
    own += _SECOND_ORDER * scale * (x_error + np.abs(x) * spread)
    return own


def linear_error(x: Float64, x_error: Float64, weight: Array, bias: Array | None = None) -> Float64:
    """Most that ``x @ weight.T + bias`` is off before it is rounded; ``weight`` is ``[N, K]``."""
    absolute = np.abs(f64(weight)).T
    magnitude = (np.abs(x) + x_error) @ absolute
    if bias is not None:
        magnitude = magnitude + np.abs(f64(bias))
    error: Float64 = x_error @ absolute + dot_error(magnitude, x.shape[-1] + 8)
    return error


def silu_mul_error(gate: Float64, up: Float64, gate_error: Float64, up_error: Float64) -> Float64:
    """Most that ``silu(gate) * up`` is off."""
    with np.errstate(over="ignore"):
        silu = np.abs(gate / (1 + np.exp(-gate)))
    # The rounding of exp's argument, at most 88, is a relative error of its value; where exp is above 2^126 the
    # hardware's quotient is zero, and silu below 88.73 / 2^126.
    lost = 89 * 2.0**-126 * np.abs(up)
    moved = _SILU_SLOPE * gate_error * (np.abs(up) + up_error) + silu * up_error
    error: Float64 = 256 * F32_ROUNDOFF * silu * np.abs(up) + lost + moved
    return error


def rope_error(heads: Float64, heads_error: Float64) -> Float64:
    """Most that rotated heads are off, ``[T, N, D]``: each of a pair takes part in both results."""
    half = heads.shape[-1] // 2

    def of_pairs(values: Float64) -> Float64:
        both = values[..., :half] + values[..., half:]
        return np.concatenate([both, both], axis=-1)

    return of_pairs(heads_error) + 8 * F32_ROUNDOFF * of_pairs(np.abs(heads))


def attention_error(
    largest_scores: Float64, head_dim: int, num_visible: int, of_absolutes: Float64, roundoff: float
) -> Float64:
    """Most that attention is off before its result is rounded.

    Args:
        largest_scores: ``[T, H]``, bounds of the scaled scores.
        head_dim: ``D``.
        num_visible: most positions that a query sees.
        of_absolutes: attention over the absolute values.
        roundoff: of weights, which are rounded before they multiply.
    """
    # A score is a sum of D products (a tensor core truncates: twice the bound), scaled and shifted.
    score_error = largest_scores * (2 * head_dim + 4) * F32_ROUNDOFF
    # Weights and their sum have that error each, those of exp2, of rescaling once a tile, and of summation.
    rescalings = 2 + num_visible / 16
    relative = 2 * score_error + 2 * rescalings * _EXP2_ERROR + 3 * num_visible * F32_ROUNDOFF + roundoff
    error: Float64 = np.expm1(relative)[..., None] * of_absolutes
    return error
