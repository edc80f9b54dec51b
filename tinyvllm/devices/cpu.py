"""The CPU as a device: its tensors are NumPy arrays, and an op is done when it returns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyvllm.device import Shape

_POISONED_BYTES = 1 << 20
"""Larger arrays are left as the system gives them: writing to memory takes it, and a KV cache is never used whole."""

HostArray = npt.NDArray[Any]


class CpuMemory:
    """Implements ``Memory`` with NumPy arrays."""

    def alloc(self, shape: Shape, dtype: npt.DTypeLike) -> HostArray:
        """A new array; floats are NaN in a small one, and zero in a large one, which takes memory as it is written."""
        kind = np.dtype(dtype)
        if math.prod(shape) * kind.itemsize > _POISONED_BYTES:
            return np.zeros(shape, kind)
        array = np.empty(shape, kind)
        self.fill(array, 0xFF)
        return array

    def upload(self, tensor: HostArray, array: HostArray) -> None:
        """Copies ``array``, of the same shape, into ``tensor``."""
        np.copyto(tensor, array)

    def download(self, tensor: HostArray) -> HostArray:
        """A copy of the tensor's contents."""
        return tensor.copy()

    def fill(self, tensor: HostArray, byte: int) -> None:
        """Sets every byte of the tensor."""
        tensor.view(np.uint8)[...] = byte


class CpuDevice:
    """Implements ``Device``.

    Args:
        activation_dtype: of hidden states, weights and the KV cache; float64 for definitions that others are held to.
    """

    def __init__(self, activation_dtype: npt.DTypeLike = np.float32) -> None:
        self._activation_dtype = np.dtype(activation_dtype)
        self._memory = CpuMemory()

    @property
    def name(self) -> str:
        """``"cpu"``."""
        return "cpu"

    @property
    def activation_dtype(self) -> np.dtype[Any]:
        """Of hidden states, weights and the KV cache."""
        return self._activation_dtype

    @property
    def memory(self) -> CpuMemory:
        """Allocation and copies."""
        return self._memory

    def synchronize(self) -> None:
        """Nothing is queued."""
