"""Products from 17 rows on made for Hopper, in place of the library's: what an engine uses there unless it is told.

Other numbers of rows go where ``nvrtc`` sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import cast

from tinyvllm.ops.buffers import HOPPER_ARCH, ceil_div
from tinyvllm.ops.fused import normed_rows_of
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Kernel, Linear, Norm, OpSpec, Plugin, PluginContext, hookimpl
from tinyvllm_kernels.nvrtc import NvrtcKernels
from tinyvllm_kernels.projection.tiling import smallest_holding
from tinyvllm_kernels.wide.gate_up_silu_wide import TILE_ROWS, GateUpSiluWide
from tinyvllm_kernels.wide.linear_residual_wide import LinearResidualWide

WIDE_ROWS = (64, 128, 256)
"""Capacity, in rows, of each version of the gate and up projections. Above the last one, blocks of its rows share the
product, if that fills the card."""
_MIN_ROWS = 17
WIDE_RESIDUAL_ROWS = (64, 128)
"""Capacity of each version of the projections that add to the residual; above it cuBLASLt is faster."""
_MIN_RESIDUAL_ROWS = 33
"""Below these numbers of rows the kernels that stream the weights once are faster."""
_MIN_UTILISATION = 0.92
"""Minimum SM utilisation, the last wave included, above 256 rows; below it cuBLASLt with a separate SiLU is faster.
Measured on an H100 with the shape of Llama 3.2 1B."""
_ROWS_AT_ONCE = 2048
"""Rows of x that stay in the second-level cache while a wave of blocks reads them."""


class HopperKernels:
    """The two ops whose products it has."""

    def __init__(self, context: PluginContext) -> None:
        """Keeps what serves the other numbers of rows."""
        self._others = NvrtcKernels(context)

    def ops(self) -> Sequence[str]:
        """Both."""
        return list(_BINDERS)

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        """Reasons why not."""
        reasons = self._others.supports(op, spec)
        if spec.arch not in (None, HOPPER_ARCH):
            reasons.append(f"made of instructions of sm_{HOPPER_ARCH}, not sm_{spec.arch}")
        if spec.batch_invariant:
            reasons.append("sums in another order than the kernels for few rows, so not with batch_invariant")
        return reasons

    def bind(self, op: str, context: BindContext) -> BoundOp:
        """The op, with its signature."""
        return _BINDERS[op](context, self._others.bind(op, context))


def _bind_linear_residual(context: BindContext, otherwise: BoundOp) -> BoundOp:
    device = context.gpu

    @cache
    def made(out_features: int, in_features: int, batch_rows: int) -> LinearResidualWide:
        return LinearResidualWide(device, in_features=in_features, out_features=out_features, batch_rows=batch_rows)

    def linear_residual(residual: Buffer, x: Buffer, layer: Linear) -> None:
        rows = _version(x.shape[0], WIDE_RESIDUAL_ROWS, _MIN_RESIDUAL_ROWS)
        if rows is None:
            otherwise(residual, x, layer)
        else:
            made(layer.out_features, layer.in_features, rows)(residual, x, layer.weight, layer.bias)

    return linear_residual


def _bind_gate_up(context: BindContext, otherwise: BoundOp) -> BoundOp:
    device, linear = context.gpu, context.linear
    max_rows, normed = min(context.limits.max_tokens, _ROWS_AT_ONCE), cast(Buffer, normed_rows_of(context))
    num_tiles, num_sms = ceil_div(linear.out_features, TILE_ROWS), device.properties.num_sms

    @cache
    def made(eps: float, batch_rows: int) -> GateUpSiluWide:
        return GateUpSiluWide(
            device, hidden_size=linear.in_features, intermediate_size=linear.out_features // 2, eps=eps,
            batch_rows=batch_rows, max_rows=max_rows, normed=normed,
        )  # fmt: skip

    def fill_the_card(num_rows: int) -> bool:
        num_rounds = ceil_div(num_tiles * ceil_div(num_rows, WIDE_ROWS[-1]), num_sms)
        return num_tiles * num_rows >= _MIN_UTILISATION * num_rounds * num_sms * WIDE_ROWS[-1]

    def rms_norm_gate_up_silu(out: Buffer, x: Buffer, norm: Norm, gate_up: Linear) -> None:
        for first in range(0, x.shape[0], _ROWS_AT_ONCE):
            num_rows = min(_ROWS_AT_ONCE, x.shape[0] - first)
            part, part_out = (each[first : first + num_rows] for each in (x, out))
            rows = _version(num_rows, WIDE_ROWS, _MIN_ROWS)
            if rows is None and num_rows > WIDE_ROWS[-1] and fill_the_card(num_rows):
                rows = WIDE_ROWS[-1]
            if rows is None:
                otherwise(part_out, part, norm, gate_up)
            else:
                made(norm.eps, rows)(part_out, part, norm.weight, gate_up.weight)

    return rms_norm_gate_up_silu


def _version(num_rows: int, versions: Sequence[int], min_rows: int) -> int | None:
    """The version for so many rows; None: there is none."""
    return smallest_holding(num_rows, versions) if num_rows >= min_rows else None


_BINDERS: Mapping[str, Callable[[BindContext, BoundOp], BoundOp]] = {
    "linear_residual": _bind_linear_residual,
    "rms_norm_gate_up_silu": _bind_gate_up,
}


@hookimpl
def register_kernels() -> list[Plugin[Kernel]]:
    """The plugin ``hopper``."""
    return [Plugin("hopper", HopperKernels, description="products from 17 rows on, for sm_90")]
