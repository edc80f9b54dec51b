"""Launches ``rms_norm.cu`` on some columns of a matrix."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16, Buffer, Gpu
from tinyvllm.ops.buffers import VECTOR, WARP_SIZE, beside, check_buffer, check_multiple, round_up
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Norm


class NormColumns:
    """``rms_norm`` of the columns ``first .. first + N - 1`` of ``x``, in place.

    Args:
        device: where it runs.
        width: ``W`` of ``x``, a multiple of 8.
        first: column, 0 or a multiple of 8.
        size: ``N``, a multiple of 8.
        eps: joins the mean square.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(self, device: Gpu, *, width: int, first: int, size: int, eps: float, pdl: bool = True) -> None:
        check_multiple("width", width, VECTOR)
        check_multiple("size", size, VECTOR)
        if first:
            check_multiple("first", first, VECTOR)
        self._device, self._width, self._first, self._size, self._pdl = device, width, first, size, pdl
        self._eps = np.float32(eps)
        self._threads = min(256, round_up(size // VECTOR, WARP_SIZE))
        defines = {"SIZE_E": size, "ROW_STRIDE": width, "THREADS": self._threads}
        self._function = device.compile(beside(__file__, "rms_norm.cu"), defines).function("rms_norm")

    def __call__(self, x: Buffer, weight: Buffer) -> None:
        """Queue it.

        Args:
            x: ``[T, W]``, bfloat16; changed.
            weight: ``[N]``, bfloat16.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        check_buffer("norm_columns x", x, (None, self._width), BFLOAT16)
        check_buffer("norm_columns weight", weight, (self._size,), BFLOAT16)
        num_tokens = x.shape[0]
        offset_bytes = self._first * BFLOAT16.itemsize
        columns = x.view((num_tokens * self._width - self._first,), offset_bytes=offset_bytes)
        arguments = (columns, columns, weight, self._eps)
        self._device.launch(self._function, (num_tokens, 1, 1), (self._threads, 1, 1), arguments, pdl=self._pdl)


def bind_norm_columns(context: BindContext) -> BoundOp:
    """``norm_columns``."""
    device = context.gpu
    made = cache(lambda width, first, size, eps: NormColumns(device, width=width, first=first, size=size, eps=eps))

    def norm_columns(x: Buffer, first: int, norm: Norm) -> None:
        made(x.shape[1], first, norm.weight.shape[0], norm.eps)(x, norm.weight)

    return norm_columns


BINDERS = {"norm_columns": bind_norm_columns}
