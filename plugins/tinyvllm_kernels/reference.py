"""The CPU's kernels: the NumPy definitions themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyvllm.layers import COLUMNS, ROWS
from tinyvllm.ops.catalogue import OPS
from tinyvllm.plugin import BindContext, Kernel, Linear, OpSpec, Plugin, PluginContext, hookimpl
from tinyvllm.reference.linear import linear_in_tiles

_PRODUCTS = ("linear", "lm_head")
# Transposed copies go by blocks of this many rows: a block of the source stays in the cache while its columns
# are written (measured on [8192, 2048]: 0.35 s at once, 0.04 s by blocks).
_TRANSPOSE_ROWS = 16


class ReferenceKernels:
    """Every simple op on the CPU; with ``batch_invariant`` the linear layers go by tiles of eight rows."""

    def __init__(self, context: PluginContext) -> None:
        """Nothing to keep: the ops take all they need."""

    def ops(self) -> Sequence[str]:
        """All ops that are not fused."""
        return [name for name, op in OPS.items() if not op.is_fused]

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        """Reasons why not: another device, or weights that are not plain matrices."""
        reasons = []
        if spec.device != "cpu":
            reasons.append(f"runs on the CPU, not on {spec.device}")
        if spec.linear is not None and spec.linear.scheme not in (ROWS, COLUMNS):
            reasons.append(f"knows weights stored by rows or columns, not as {spec.linear.scheme}")
        return reasons

    def prepare(self, op: str, layer: Linear) -> Linear:
        """The layer with its matrix by columns, which the BLAS multiplies faster by few rows."""
        if op not in _PRODUCTS or layer.scheme != ROWS:
            return layer
        rows = layer.weight
        columns = np.empty(rows.shape[::-1], rows.dtype)
        for start in range(0, len(rows), _TRANSPOSE_ROWS):
            columns[:, start : start + _TRANSPOSE_ROWS] = rows[start : start + _TRANSPOSE_ROWS].T
        return Linear(columns, layer.bias, COLUMNS, layer.in_features, layer.out_features)

    def bind(self, op: str, context: BindContext) -> Callable[..., None]:
        """The op's definition."""
        if op in _PRODUCTS and context.spec.batch_invariant:
            return _linear_in_tiles
        definition = OPS[op].definition
        assert definition is not None
        return definition


def _linear_in_tiles(out: Any, x: Any, layer: Linear) -> None:
    """``linear`` and ``lm_head`` with the same bits for a row in any batch."""
    out[...] = linear_in_tiles(x, layer)


@hookimpl
def register_kernels() -> list[Plugin[Kernel]]:
    """The plugin ``reference``."""
    return [Plugin("reference", ReferenceKernels, description="NumPy definitions, on the CPU")]
