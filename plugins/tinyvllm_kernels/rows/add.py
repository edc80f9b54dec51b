"""Launches ``add.cu``: addition to the residual stream."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16
from tinyvllm.ops.buffers import VECTOR, beside, ceil_div, check_buffer, check_multiple
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu

_THREADS = 128


class Add:
    """``residual += x``.

    Args:
        device: where it runs.
        hidden_size: ``E``, a multiple of 8.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(self, device: Gpu, *, hidden_size: int, pdl: bool = True) -> None:
        check_multiple("hidden_size", hidden_size, VECTOR)
        self._device, self._hidden_size, self._pdl = device, hidden_size, pdl
        self._function = device.compile(beside(__file__, "add.cu"), {"THREADS": _THREADS}).function("add")

    def __call__(self, residual: Buffer, x: Buffer) -> None:
        """Queue it.

        Args:
            residual: ``[T, E]``, bfloat16; changed in place.
            x: ``[T, E]``, bfloat16; another buffer.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        check_buffer("add residual", residual, (None, self._hidden_size), BFLOAT16)
        check_buffer("add x", x, residual.shape, BFLOAT16)
        num_vectors = residual.shape[0] * self._hidden_size // VECTOR
        grid = (ceil_div(num_vectors, _THREADS), 1, 1)
        self._device.launch(self._function, grid, (_THREADS, 1, 1), (residual, x, np.int32(num_vectors)), pdl=self._pdl)


def bind_add(context: BindContext) -> BoundOp:
    """``add``."""
    device = context.gpu
    made = cache(lambda size: Add(device, hidden_size=size))

    def add(residual: Buffer, x: Buffer) -> None:
        made(x.shape[1])(residual, x)

    return add


BINDERS = {"add": bind_add}
