"""The devices' kernels: the launchers of ``tinyvllm/kernels`` bound to the ops they implement.

Few rows go through kernels that stream the weights once, in a version for each number of rows that ``tiers.py`` names;
many rows through the device's matrix products, an op made of its parts then. Launchers are compiled, and their scratch
memory allocated, when they are first called. Registering imports nothing of CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import BindContext, Kernel, OpSpec, Plugin, PluginContext
from tinyvllm.layers import ROWS
from tinyvllm.ops.buffers import VECTOR
from tinyvllm.ops.compositions import BoundOp
from tinyvllm_kernels import fused_ops, simple_ops


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
        """The op as a callable with the signature of its method in ``Ops``."""
        return _BINDERS[op](context)


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

_BINDERS: Mapping[str, Callable[[BindContext], BoundOp]] = {
    "embedding": simple_ops.bind_embedding,
    "rms_norm": simple_ops.bind_rms_norm,
    "linear": simple_ops.bind_linear,
    "add": simple_ops.bind_add,
    "rope_append": simple_ops.bind_rope_append,
    "silu_mul": simple_ops.bind_silu_mul,
    "gelu_mul": simple_ops.bind_gelu_mul,
    "scale": simple_ops.bind_scale,
    "norm_columns": simple_ops.bind_norm_columns,
    "lm_head": simple_ops.bind_lm_head,
    "argmax": simple_ops.bind_argmax,
    "rms_norm_qkv_rope_append": fused_ops.bind_qkv,
    "linear_residual": fused_ops.bind_linear_residual,
    "rms_norm_gate_up_silu": fused_ops.bind_gate_up,
    "rms_norm_lm_head": fused_ops.bind_rms_norm_lm_head,
    "lm_head_argmax": fused_ops.bind_lm_head_argmax,
}


@hookimpl
def register_kernels() -> list[Plugin[Kernel]]:
    """The plugin ``nvrtc``."""
    return [Plugin("nvrtc", NvrtcKernels, description="CUDA C++ kernels, on cuda and the emulator")]
