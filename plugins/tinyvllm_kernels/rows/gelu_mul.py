"""Launches ``gelu_mul.cu``: the gated activation of Gemma's MLP."""

from __future__ import annotations

from functools import cache

from tinyvllm.device import BFLOAT16, Buffer, Gpu
from tinyvllm.ops.buffers import VECTOR, WARP_SIZE, beside, ceil_div, check_buffer, check_multiple, round_up
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext


class GeluMul:
    """``out[t] = gelu(gate_up[t, :F]) * gate_up[t, F:]``.

    Args:
        device: where it runs.
        intermediate_size: ``F``, a multiple of 8.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(self, device: Gpu, *, intermediate_size: int, pdl: bool = True) -> None:
        check_multiple("intermediate_size", intermediate_size, VECTOR)
        self._device, self._size, self._pdl = device, intermediate_size, pdl
        self._threads = min(256, round_up(intermediate_size // VECTOR, WARP_SIZE))
        self._blocks = ceil_div(intermediate_size, self._threads * VECTOR)
        module = device.compile(
            beside(__file__, "gelu_mul.cu"), {"SIZE_F": intermediate_size, "THREADS": self._threads}
        )
        self._function = module.function("gelu_mul")

    def __call__(self, out: Buffer, gate_up: Buffer) -> None:
        """Queue it.

        Args:
            out: ``[T, F]``, bfloat16.
            gate_up: ``[T, 2F]``, bfloat16; the gate first.
        Raises:
            ShapeError: a buffer has another shape or dtype, or more than 65,535 rows.
        """
        num_tokens = out.shape[0]
        check_buffer("gelu_mul out", out, (None, self._size), BFLOAT16)
        check_buffer("gelu_mul gate_up", gate_up, (num_tokens, 2 * self._size), BFLOAT16)
        self._device.launch(
            self._function, (self._blocks, num_tokens, 1), (self._threads, 1, 1), (out, gate_up), pdl=self._pdl
        )


def bind_gelu_mul(context: BindContext) -> BoundOp:
    """``gelu_mul``."""
    device = context.gpu
    made = cache(lambda size: GeluMul(device, intermediate_size=size))

    def gelu_mul(out: Buffer, gate_up: Buffer) -> None:
        made(out.shape[1])(out, gate_up)

    return gelu_mul


BINDERS = {"gelu_mul": bind_gelu_mul}
