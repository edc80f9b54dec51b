"""The sampler ``default``, on every device: NumPy on the CPU, CUDA kernels on a GPU and the emulator of one."""

from __future__ import annotations

from tinyvllm.plugin import (
    GpuSampler,
    HostSampler,
    Plugin,
    PluginContext,
    Sampler,
    SamplerContext,
    SamplerSpec,
    hookimpl,
)
from tinyvllm_samplers.on_gpu import DefaultOnGpu
from tinyvllm_samplers.on_host import DefaultOnHost


class DefaultSampler:
    """All sampling parameters; a request gets the same tokens on every device as far as its logits are the same."""

    def __init__(self, context: PluginContext) -> None:
        """Nothing to keep: all that it needs comes when it is bound."""

    def supports(self, spec: SamplerSpec) -> list[str]:
        """It serves every device."""
        return []

    def bind(self, context: SamplerContext) -> HostSampler | GpuSampler:
        """The sampler of one engine, on its device."""
        host = DefaultOnHost()
        return host if context.spec.device == "cpu" else DefaultOnGpu(context, host)


@hookimpl
def register_samplers() -> list[Plugin[Sampler]]:
    """The plugin ``default``."""
    return [Plugin("default", DefaultSampler, description="all sampling parameters, on every device")]
