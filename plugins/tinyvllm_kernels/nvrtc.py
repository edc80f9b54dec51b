"""The devices' kernels: the launchers of ``tinyvllm/kernels`` bound to the ops they implement.

Few rows go through kernels that stream the weights once, in a version for each number of rows that ``tiers.py`` names;
many rows through the device's matrix products, an op made of its parts then. Launchers are compiled, and their scratch
memory allocated, when they are first called; the attention's when it is bound. Registering imports nothing of CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import API_VERSION as INTERFACE_VERSION
from tinyvllm.interfaces import BindContext, Kernel, OpSpec, Plugin, PluginContext
from tinyvllm_kernels import attention_ops, fused_ops, simple_ops
from tinyvllm_kernels.tiers import Launch

_WEIGHT_SCHEME = "rows"


class NvrtcKernels:
    """Every op of a device but ``attention``, which is made of its two parts."""

    API_VERSION = INTERFACE_VERSION

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
        if spec.weight_scheme != _WEIGHT_SCHEME:
            reasons.append(f"knows weights stored in {_WEIGHT_SCHEME}, not {spec.weight_scheme}")
        if spec.dtype != "bfloat16":
            reasons.append(f"computes with bfloat16, not {spec.dtype}")
        if spec.kv_layout != "HND":
            reasons.append(f"knows the KV layout HND, not {spec.kv_layout}")
        if op == "rms_norm_qkv_rope_append" and spec.has_qk_norm:
            reasons.append("heads have norms of their own, which the fused kernel does not apply")
        return reasons

    def bind(self, op: str, context: BindContext) -> Launch:
        """The op as a callable of the signature in ``DeviceOps``."""
        return _BINDERS[op](context)


_BINDERS: Mapping[str, Callable[[BindContext], Launch]] = {
    "embedding": simple_ops.bind_embedding,
    "rms_norm": simple_ops.bind_rms_norm,
    "linear": simple_ops.bind_linear,
    "add": simple_ops.bind_add,
    "rope_append": simple_ops.bind_rope_append,
    "silu_mul": simple_ops.bind_silu_mul,
    "lm_head": simple_ops.bind_lm_head,
    "argmax": simple_ops.bind_argmax,
    "attention_decode": attention_ops.bind_attention_decode,
    "attention_prefill": attention_ops.bind_attention_prefill,
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
