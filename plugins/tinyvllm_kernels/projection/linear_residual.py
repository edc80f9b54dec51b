"""Launches ``linear_residual.cu``: a linear layer added to the residual stream, for few rows."""

from __future__ import annotations

from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext
from tinyvllm_kernels.projection.linear import LinearRows, bind_layer


class LinearResidual(LinearRows):
    """``residual += x @ weight.T + bias``; arguments as of ``LinearRows``. ``x`` is another buffer."""

    name = "linear_residual"
    out_name = "residual"


def bind_linear_residual(context: BindContext) -> BoundOp:
    """``linear_residual``."""
    return bind_layer(context, LinearResidual, accumulate=True)


BINDERS = {"linear_residual": bind_linear_residual}
