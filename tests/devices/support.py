"""Buffers from arrays, inputs, and how far a float32 sum may be off."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tinyvllm.device import Array, Buffer
from tinyvllm.devices.cuda import CudaDevice

BF16 = np.dtype(ml_dtypes.bfloat16)
BF16_ROUNDOFF = 2.0**-8
F32_ROUNDOFF = 2.0**-24


def put(cuda: CudaDevice, array: Array) -> Buffer:
    buffer = cuda.memory.alloc(array.shape, array.dtype)
    cuda.memory.upload(buffer, array)
    return buffer


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def assert_within(got: Array, expected: Array, allowed: Array) -> None:
    off = np.abs(got.astype(np.float64) - expected)
    assert (off <= allowed).all(), f"off by {np.nanmax(off - allowed):.3g} more than allowed, NaN {np.isnan(off).sum()}"


def sum_error(magnitude: Array, length: int) -> Array:
    """Twice the textbook bound of a float32 sum in any order: a tensor core truncates where others round."""
    return 2 * length * F32_ROUNDOFF * magnitude
