"""Launches ``gelu_mul.cu``: the gated activation of Gemma's MLP."""

from __future__ import annotations

from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext
from tinyvllm_kernels.rows.gated_mul import GatedMul, bind_gated_mul


class GeluMul(GatedMul):
    """``out[t] = gelu(gate_up[t, :F]) * gate_up[t, F:]``; arguments as of ``GatedMul``."""

    name = "gelu_mul"


def bind_gelu_mul(context: BindContext) -> BoundOp:
    """``gelu_mul``."""
    return bind_gated_mul(context, GeluMul)


BINDERS = {"gelu_mul": bind_gelu_mul}
