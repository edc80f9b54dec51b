"""The CPU's kernels: the NumPy definitions themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import API_VERSION as INTERFACE_VERSION
from tinyvllm.interfaces import BindContext, Kernel, OpSpec, Plugin, PluginContext
from tinyvllm.ops.catalogue import OPS
from tinyvllm.reference.linear import linear_in_tiles


class ReferenceKernels:
    """Every simple op on the CPU; with ``batch_invariant`` the linear layers go by tiles of eight rows."""

    API_VERSION = INTERFACE_VERSION

    def __init__(self, context: PluginContext) -> None:
        """Nothing to keep: the ops take all they need."""

    def ops(self) -> Sequence[str]:
        """All ops of the CPU that are not fused."""
        return [name for name, op in OPS.items() if op.is_on_cpu and not op.is_fused]

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        """Reasons why not: another device, or weights that are not plain arrays."""
        reasons = []
        if spec.device != "cpu":
            reasons.append(f"runs on the CPU, not on {spec.device}")
        if spec.weight_scheme != "dense":
            reasons.append(f"knows dense weights, not {spec.weight_scheme}")
        return reasons

    def bind(self, op: str, context: BindContext) -> Callable[..., Any]:
        """The op's reference."""
        if op == "linear" and context.spec.batch_invariant:
            return linear_in_tiles
        reference = OPS[op].reference
        assert reference is not None
        return reference


@hookimpl
def register_kernels() -> list[Plugin[Kernel]]:
    """The plugin ``reference``."""
    return [Plugin("reference", ReferenceKernels, description="NumPy definitions, on the CPU")]
