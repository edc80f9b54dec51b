"""Launches ``silu_mul.cu``: the gated activation of the MLP."""

from __future__ import annotations

from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext
from tinyvllm_kernels.rows.gated_mul import GatedMul, bind_gated_mul


class SiluMul(GatedMul):
    """``out[t] = silu(gate_up[t, :F]) * gate_up[t, F:]``; arguments as of ``GatedMul``."""

    name = "silu_mul"


def bind_silu_mul(context: BindContext) -> BoundOp:
    """``silu_mul``."""
    return bind_gated_mul(context, SiluMul)


BINDERS = {"silu_mul": bind_silu_mul}
