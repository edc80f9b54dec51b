"""The plugins that a configuration chose, created and put into what the engine asks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tinyvllm.config.schema import Config, Section
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import (
    AttentionContext,
    AttentionSpec,
    HostSampler,
    Kernel,
    Kind,
    Loader,
    OpSpec,
    PluginContext,
    Sampler,
    SamplerContext,
    SamplerSpec,
    Scheduler,
)
from tinyvllm.ops.checked_kernel import CheckedKernel
from tinyvllm.ops.table import DEFAULT_KERNELS, OpTable
from tinyvllm.plugin_call import PluginName
from tinyvllm.registry import Registry
from tinyvllm.runner.checked_attention import CheckedAttention, CheckedBoundAttention
from tinyvllm.runner.checked_sampler import CheckedGpuSampler, CheckedHostSampler, bound_sampler
from tinyvllm.workspace import Workspace


class Sockets:
    """One engine's plugins.

    Args:
        config: validated.
        registry: where plugins come from.
        options: validated options of each plugin, by section (``scheduler``, ``kernels.rms_norm``).
        context: what plugins are told when they are created.
    """

    def __init__(self, config: Config, registry: Registry, options: Mapping[str, Any], context: PluginContext) -> None:
        self._config, self._registry, self._options, self._context = config, registry, options, context

    def loader(self) -> tuple[Loader, PluginName]:
        """The loader and its name."""
        loader: Loader = self._create(Kind.LOADER, self._config.loader)
        return loader, self._registry.named(Kind.LOADER, self._config.loader.name)

    def scheduler(self) -> tuple[Scheduler, PluginName]:
        """The scheduler and its name."""
        scheduler: Scheduler = self._create(Kind.SCHEDULER, self._config.scheduler)
        return scheduler, self._registry.named(Kind.SCHEDULER, self._config.scheduler.name)

    def sampler(self, workspace: Workspace) -> CheckedGpuSampler | CheckedHostSampler:
        """The sampler, checked at every call.

        Raises:
            PluginError: it cannot serve this engine.
        """
        sampler: Sampler | HostSampler = self._create(Kind.SAMPLER, self._config.sampler)
        name = self._registry.named(Kind.SAMPLER, self._config.sampler.name)
        spec = SamplerSpec(workspace.device.name, self._context.model.vocab_size)
        return bound_sampler(sampler, name, SamplerContext(spec, workspace))

    def attention(self, specs: Sequence[AttentionSpec], workspace: Workspace) -> CheckedBoundAttention:
        """The attention of all layers, checked at every call.

        Args:
            specs: of each layer.
            workspace: where it runs.
        Raises:
            PluginError: it cannot serve one of them.
        """
        name = self._config.attention.name
        plugin = self._registry.named(Kind.ATTENTION, name)
        attention = CheckedAttention(self._create(Kind.ATTENTION, self._config.attention), plugin)
        kinds = tuple(dict.fromkeys(specs))
        reasons = dict.fromkeys(reason for spec in kinds for reason in attention.supports(spec))
        if reasons:
            raise PluginError(f"attention {name!r} cannot serve this model here: {'; '.join(reasons)}")
        return attention.bind(AttentionContext(kinds, workspace))

    def ops(self, spec: OpSpec, workspace: Workspace) -> OpTable:
        """Who serves each op.

        Raises:
            ConfigError: a section of ``kernels:`` names no op.
        """
        replacements = {}
        for op, chosen in self._config.kernels.items():
            name = chosen if isinstance(chosen, str) else chosen.name
            own = replace(self._context, options=self._options_of(Kind.KERNEL, f"kernels.{op}", name))
            kernel: Kernel = self._registry.create(Kind.KERNEL, name, own)
            replacements[op] = (name, CheckedKernel(kernel, self._registry.named(Kind.KERNEL, name)))
        defaults = {}
        for name in DEFAULT_KERNELS[spec.device]:
            own = replace(self._context, options=self._registry.get(Kind.KERNEL, name).options())
            defaults[name] = self._registry.create(Kind.KERNEL, name, own)
        return OpTable(spec, defaults, replacements, workspace)

    def _create(self, kind: Kind, section: Section) -> Any:
        options = self._options_of(kind, kind.value, section.name)
        return self._registry.create(kind, section.name, replace(self._context, options=options))

    def _options_of(self, kind: Kind, where: str, name: str) -> Any:
        return self._options[where] if where in self._options else self._registry.get(kind, name).options()
