"""Launches ``scale.cu``: multiplication of rows by one number."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16, Buffer, Gpu
from tinyvllm.ops.buffers import VECTOR, beside, ceil_div, check_buffer, check_multiple
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext

_THREADS = 128


class Scale:
    """``x *= factor``.

    Args:
        device: where it runs.
        hidden_size: ``E``, a multiple of 8.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(self, device: Gpu, *, hidden_size: int, pdl: bool = True) -> None:
        check_multiple("hidden_size", hidden_size, VECTOR)
        self._device, self._hidden_size, self._pdl = device, hidden_size, pdl
        self._function = device.compile(beside(__file__, "scale.cu"), {"THREADS": _THREADS}).function("scale")

    def __call__(self, x: Buffer, factor: float) -> None:
        """Queue it.

        Args:
            x: ``[T, E]``, bfloat16; changed in place.
            factor: rounded to float32.
        Raises:
            ShapeError: the buffer has another shape or dtype.
        """
        check_buffer("scale x", x, (None, self._hidden_size), BFLOAT16)
        num_vectors = x.shape[0] * self._hidden_size // VECTOR
        grid, arguments = (ceil_div(num_vectors, _THREADS), 1, 1), (x, np.float32(factor), np.int32(num_vectors))
        self._device.launch(self._function, grid, (_THREADS, 1, 1), arguments, pdl=self._pdl)


def bind_scale(context: BindContext) -> BoundOp:
    """``scale``."""
    device = context.gpu
    made = cache(lambda size: Scale(device, hidden_size=size))

    def scale(x: Buffer, factor: float) -> None:
        made(x.shape[1])(x, factor)

    return scale


BINDERS = {"scale": bind_scale}
