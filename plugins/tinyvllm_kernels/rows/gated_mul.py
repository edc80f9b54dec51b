"""What the launchers of gated activations share: ``silu_mul.cu`` and ``gelu_mul.cu`` differ in the function alone."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from tinyvllm.device import BFLOAT16
from tinyvllm.ops.buffers import VECTOR, WARP_SIZE, beside, ceil_div, check_buffer, check_multiple, round_up
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu


class GatedMul:
    """``out[t] = f(gate_up[t, :F]) * gate_up[t, F:]``.

    Args:
        device: where it runs.
        intermediate_size: ``F``, a multiple of 8.
        pdl: the launch may overlap the end of its predecessor.
    """

    name: ClassVar[str]
    """Of the source and of the kernel."""

    def __init__(self, device: Gpu, *, intermediate_size: int, pdl: bool = True) -> None:
        check_multiple("intermediate_size", intermediate_size, VECTOR)
        self._device, self._size, self._pdl = device, intermediate_size, pdl
        self._threads = min(256, round_up(intermediate_size // VECTOR, WARP_SIZE))
        self._blocks = ceil_div(intermediate_size, self._threads * VECTOR)
        defines = {"SIZE_F": intermediate_size, "THREADS": self._threads}
        self._function = device.compile(beside(__file__, f"{self.name}.cu"), defines).function(self.name)

    def __call__(self, out: Buffer, gate_up: Buffer) -> None:
        """Queue it.

        Args:
            out: ``[T, F]``, bfloat16.
            gate_up: ``[T, 2F]``, bfloat16; the gate first.
        Raises:
            ShapeError: a buffer has another shape or dtype, or more than 65,535 rows.
        """
        num_tokens = out.shape[0]
        check_buffer(f"{self.name} out", out, (None, self._size), BFLOAT16)
        check_buffer(f"{self.name} gate_up", gate_up, (num_tokens, 2 * self._size), BFLOAT16)
        self._device.launch(
            self._function, (self._blocks, num_tokens, 1), (self._threads, 1, 1), (out, gate_up), pdl=self._pdl
        )


def bind_gated_mul(context: BindContext, launcher: type[GatedMul]) -> BoundOp:
    """The op that a launcher serves, for any ``F``."""
    device = context.gpu
    made = cache(lambda size: launcher(device, intermediate_size=size))

    def gated_mul(out: Buffer, gate_up: Buffer) -> None:
        made(out.shape[1])(out, gate_up)

    return gated_mul
