"""The attention ``paged``, on every device: NumPy on the CPU, CUDA kernels on a GPU and the emulator of one."""

from __future__ import annotations

from tinyvllm.plugin import Attention, AttentionContext, AttentionSpec, BoundAttention, Plugin, PluginContext, hookimpl
from tinyvllm_attention.on_cpu import PagedOnCpu
from tinyvllm_attention.on_gpu import PagedOnGpu, reasons_on_gpu


class PagedAttention:
    """Causal attention over the paged KV cache."""

    def __init__(self, context: PluginContext) -> None:
        """Nothing to keep: all that it needs comes when it is bound."""

    def supports(self, spec: AttentionSpec) -> list[str]:
        """Reasons why not: sizes that the kernels of a GPU do not know."""
        return [] if spec.device == "cpu" else reasons_on_gpu(spec)

    def bind(self, context: AttentionContext) -> BoundAttention:
        """The attention of one engine, on its device."""
        return PagedOnCpu(context) if context.workspace.device.name == "cpu" else PagedOnGpu(context)


@hookimpl
def register_attention() -> list[Plugin[Attention]]:
    """The plugin ``paged``."""
    return [Plugin("paged", PagedAttention, description="paged KV cache: NumPy on the CPU, CUDA kernels elsewhere")]
