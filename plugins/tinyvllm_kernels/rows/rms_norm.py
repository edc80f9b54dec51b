"""Launches ``rms_norm.cu``: root-mean-square normalisation of rows."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16
from tinyvllm.ops.buffers import VECTOR, WARP_SIZE, beside, check_buffer, check_multiple, round_up
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu, Norm


class RmsNorm:
    """``out[t] = x[t] / sqrt(mean(x[t]**2) + eps) * weight``.

    Args:
        device: where it runs.
        hidden_size: ``E``, a multiple of 8.
        eps: joins the mean square.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(self, device: Gpu, *, hidden_size: int, eps: float, pdl: bool = True) -> None:
        check_multiple("hidden_size", hidden_size, VECTOR)
        self._device, self._hidden_size, self._pdl = device, hidden_size, pdl
        self._eps = np.float32(eps)
        self._threads = min(256, round_up(hidden_size // VECTOR, WARP_SIZE))
        module = device.compile(beside(__file__, "rms_norm.cu"), {"SIZE_E": hidden_size, "THREADS": self._threads})
        self._function = module.function("rms_norm")

    def __call__(self, out: Buffer, x: Buffer, weight: Buffer) -> None:
        """Queue it.

        Args:
            out, x: ``[T, E]``, bfloat16; may be the same buffer.
            weight: ``[E]``, bfloat16.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        num_tokens = x.shape[0]
        check_buffer("rms_norm x", x, (None, self._hidden_size), BFLOAT16)
        check_buffer("rms_norm out", out, x.shape, BFLOAT16)
        check_buffer("rms_norm weight", weight, (self._hidden_size,), BFLOAT16)
        self._device.launch(
            self._function, (num_tokens, 1, 1), (self._threads, 1, 1), (out, x, weight, self._eps), pdl=self._pdl
        )


class NormedRows:
    """``RmsNorm`` into memory of its own, for kernels that take their rows normalised.

    Args:
        device, hidden_size, eps, pdl: as of ``RmsNorm``.
        max_rows: maximum number of rows of a call.
        rows: ``[max_rows, E]`` or more, bfloat16: memory for them; its own if not given.
    """

    def __init__(
        self,
        device: Gpu,
        max_rows: int,
        *,
        hidden_size: int,
        eps: float,
        pdl: bool,
        rows: Buffer | None = None,
    ) -> None:
        self._norm = RmsNorm(device, hidden_size=hidden_size, eps=eps, pdl=pdl)
        self._rows = device.memory.alloc((max_rows, hidden_size), BFLOAT16) if rows is None else rows

    def __call__(self, x: Buffer, weight: Buffer) -> Buffer:
        """Queue it: ``[T, E]``, the rows of ``x`` normalised, until the next call."""
        normed = self._rows.view(x.shape)
        self._norm(normed, x, weight)
        return normed


def bind_rms_norm(context: BindContext) -> BoundOp:
    """``rms_norm``."""
    device = context.gpu
    made = cache(lambda size, eps: RmsNorm(device, hidden_size=size, eps=eps))

    def rms_norm(out: Buffer, x: Buffer, norm: Norm) -> None:
        made(x.shape[1], norm.eps)(out, x, norm.weight)

    return rms_norm


BINDERS = {"rms_norm": bind_rms_norm}
