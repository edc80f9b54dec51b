"""Buffers from arrays, inputs that matter, and how far a bfloat16 result may be from its definition."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from tinyvllm.device import Array, Buffer, Gpu, Shape
from tinyvllm.layers import Linear, Norm, linear_of
from tinyvllm.reference.linear import linear
from tinyvllm.reference.rms_norm import rms_norm
from tinyvllm.testing.numbers import BF16, BF16_ROUNDOFF, F32_ROUNDOFF, SMALLEST, Float64, bf16, dot_error, f64

__all__ = [
    "BF16", "BF16_ROUNDOFF", "F32_ROUNDOFF", "SMALLEST", "Float64", "assert_close", "bf16", "dot_error", "f64",
    "get", "linear_value", "normed_dot_error", "normed_product", "once", "poisoned", "product", "put",
    "rows_of_many_scales",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


def once(make: Callable[P, R]) -> Callable[P, R]:
    """``make`` that remembers: a launcher is compiled and bound once for a device and sizes."""
    return cast("Callable[P, R]", functools.cache(make))


def put(device: Gpu, array: Array) -> Buffer:
    """A buffer with the contents of ``array``, in place before anything is launched: weights are read early."""
    buffer = device.memory.alloc(array.shape, array.dtype)
    device.memory.upload(buffer, np.ascontiguousarray(array))
    device.synchronize()
    return buffer


def poisoned(device: Gpu, shape: Shape, dtype: Any = BF16) -> Buffer:
    """A buffer of NaN (or -1)."""
    buffer = device.memory.alloc(shape, dtype)
    device.memory.fill(buffer, 0xFF)
    device.synchronize()
    return buffer


def get(device: Gpu, buffer: Buffer) -> Array:
    """The contents."""
    return device.memory.download(buffer)


def rows_of_many_scales(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """bfloat16 normal values, each row at its own scale from 1e-4 to 1e4, with a few outliers of a hundred times."""
    values = rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 4, (*shape[:-1], 1))
    values[rng.random(shape) < 0.01] *= 100
    return bf16(values)


def assert_close(got: Array, expected: Array, error: Any) -> None:
    """Every element within ``error`` of ``expected`` and one rounding to bfloat16."""
    allowed = np.asarray(error) * (1 + BF16_ROUNDOFF) + BF16_ROUNDOFF * np.abs(expected) + SMALLEST
    off = np.abs(f64(got) - expected)
    bad = ~(off <= allowed)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssertionError(
            f"{int(bad.sum())} of {bad.size} wrong; at {first}: got {f64(got)[first]}, expected {expected[first]}, "
            f"off by {off[first]:.3g}, allowed {np.broadcast_to(allowed, off.shape)[first]:.3g}"
        )


def linear_value(weight: Array, bias: Array | None = None) -> Linear:
    """The layer ``[out, in]`` of a checkpoint as a value, in float64."""
    return linear_of(f64(weight), None if bias is None else f64(bias))


def product(x: Array, layer: Linear) -> Float64:
    """The definition of ``linear`` in float64, ``[T, N]``."""
    return f64(linear(f64(x), layer))  # type: ignore[arg-type]  # definitions take any float


def normed_product(x: Array, norm: Norm, layer: Linear) -> Float64:
    """The definitions of ``rms_norm`` and ``linear`` one after the other, in float64: ``[T, N]``."""
    return product(rms_norm(f64(x), norm), layer)  # type: ignore[arg-type]


def normed_dot_error(x: Array, norm: Norm, weight: Array, num_products_rounded: int) -> Float64:
    """Most that ``norm(x) @ weight.T`` is off, ``[T, N]``.

    The mean square is a sum too, with half its relative error in the root. ``num_products_rounded`` is 1 where x times
    the norm's weight is rounded to bfloat16 before it is multiplied, otherwise 0.
    """
    rows = f64(x)
    rstd = 1 / np.sqrt((rows**2).mean(axis=1, keepdims=True) + norm.eps)
    magnitude = (np.abs(rows * norm.weight) * rstd) @ np.abs(f64(weight)).T
    length = x.shape[1]
    error: Float64 = dot_error(magnitude, length + 8) + num_products_rounded * BF16_ROUNDOFF * magnitude
    return error
