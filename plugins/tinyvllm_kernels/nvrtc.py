"""The kernels of GPUs: what the launchers of ``rows`` and ``projection`` declare that they serve.

Few rows go through kernels that stream the weights once, in a version for each number of rows that ``tiers.py`` names;
many rows through the matrix products of a library, a fused op made of its parts then. Kernels are compiled, and their
scratch memory is allocated, when they are first called. Registering imports nothing of CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyvllm.layers import ROWS
from tinyvllm.ops.buffers import VECTOR
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Kernel, OpSpec, Plugin, PluginContext, hookimpl
from tinyvllm_kernels import projection, rows
from tinyvllm_kernels.binders import binders_of


class NvrtcKernels:
    """Every op of a GPU."""

    def __init__(self, context: PluginContext) -> None:
        """Nothing to keep: an op is told all it needs when it is bound."""

    def ops(self) -> Sequence[str]:
        """All ops that it implements."""
        return list(_BINDERS)

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        """Reasons why not."""
        reasons = []
        if spec.device == "cpu":
            reasons.append("runs on cuda and the emulator, not on the CPU")
        reasons += _reasons_of_layer(op, spec)
        if spec.dtype != "bfloat16":
            reasons.append(f"computes with bfloat16, not {spec.dtype}")
        return reasons

    def bind(self, op: str, context: BindContext) -> BoundOp:
        """The op, with its signature."""
        bound: BoundOp = _BINDERS[op](context)
        return bound


def _reasons_of_layer(op: str, spec: OpSpec) -> list[str]:
    """Why not, of the layer that the op is called with."""
    linear, heads = spec.linear, spec.heads
    reasons = []
    if linear is not None:
        if linear.scheme != ROWS:
            reasons.append(f"knows weights stored by rows, not as {linear.scheme}")
        if linear.has_bias and op in _WITHOUT_BIAS:
            reasons.append("adds no bias")
        if linear.in_features % VECTOR or (linear.out_features % VECTOR and op not in _OF_ANY_WIDTH):
            reasons.append(
                f"needs layers whose sizes are multiples of {VECTOR}, not {linear.in_features} to {linear.out_features}"
            )
    if heads is not None:
        if heads.head_dim % (2 * VECTOR):
            reasons.append(f"needs a head_dim that is a multiple of {2 * VECTOR}, not {heads.head_dim}")
        if op == "rms_norm_qkv_rope_append" and heads.has_norms:
            reasons.append("heads have norms of their own, which the fused kernel does not apply")
    return reasons


_WITHOUT_BIAS = ("rms_norm_gate_up_silu", "rms_norm_lm_head", "lm_head_argmax", "lm_head")
_OF_ANY_WIDTH = ("rms_norm_lm_head", "lm_head_argmax", "lm_head")  # of any vocabulary

_BINDERS = binders_of(rows, projection)


@hookimpl
def register_kernels() -> list[Plugin[Kernel]]:
    """The plugin ``nvrtc``."""
    return [Plugin("nvrtc", NvrtcKernels, description="CUDA C++ kernels, on cuda and the emulator")]
