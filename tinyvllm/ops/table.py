"""Who implements each op in one engine: resolved once at load, then plain callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tinyvllm._nearest import did_you_mean
from tinyvllm.errors import ConfigError, PluginError
from tinyvllm.interfaces import BindContext, Kernel, OpSpec, PreparingKernel
from tinyvllm.layers import ROWS, AttentionProjection, HeadSpec, Linear
from tinyvllm.ops.catalogue import OPS, applies_linear, parts_of, splits_heads
from tinyvllm.ops.op import BoundOp
from tinyvllm.workspace import Workspace

DEFAULT_KERNELS: Mapping[str, Sequence[str]] = {
    "cpu": ("reference",),
    "emulator": ("hopper", "nvrtc"),
    "cuda": ("hopper", "nvrtc"),
}
"""Kernel plugins that serve, on each device, what nobody replaced: tried in order."""

Layer: TypeAlias = Linear | AttentionProjection
_Key: TypeAlias = tuple[str, OpSpec]


@dataclass(frozen=True, slots=True)
class Resolution:
    """One line of the start-up report: who serves an op, and why.

    Attributes:
        op: the op.
        implementation: a plugin's name, or the parts that a fused op is made of.
        reason: why this one.
        scheme: how the kernel has had the weight of the op's linear layer stored; None: as in the checkpoint.
    """

    op: str
    implementation: str
    reason: str
    scheme: str | None = None

    def __str__(self) -> str:
        """The line."""
        stored = "" if self.scheme is None else f", weights as {self.scheme}"
        return f"op {self.op}: {self.implementation}{stored} ({self.reason})"


class OpTable:
    """Every op bound to one implementation for each kind of layer.

    Args:
        spec: what an implementation must serve, but for the layer.
        defaults: kernels tried in order for ops that nobody replaced, by plugin name.
        replacements: op name to (plugin name, kernel), from the configuration. Replacing a part un-fuses what
            contains it. A replacement of a whole op is on its own: what it asks for of other ops is what serves them
            where nothing is replaced.
        workspace: where the ops run.

    Raises:
        ConfigError: a replacement names an op that does not exist.
        PluginError: a replacement cannot serve the op, or nothing can.
    """

    def __init__(
        self,
        spec: OpSpec,
        defaults: Mapping[str, Kernel],
        replacements: Mapping[str, tuple[str, Kernel]],
        workspace: Workspace,
    ) -> None:
        self._spec = spec
        self._workspace = workspace
        self._defaults = defaults
        self._replacements = replacements
        self._bound: dict[_Key, BoundOp] = {}
        self._resolutions: dict[_Key, Resolution] = {}
        self._unreplaced: OpTable | None = None
        for name in replacements:
            if name not in OPS:
                raise ConfigError(f"kernels.{name}: {_no_op(name)}")

    def op(self, name: str, layer: Layer | None = None) -> BoundOp:
        """The callable that serves an op.

        Args:
            name: of the op.
            layer: one of the layers that the op will be called with; None: it takes none, or any.
        Raises:
            ValueError: there is no such op; the caller, a kernel that is being bound, has a mistake.
            PluginError: nothing serves it.
        """
        return self.op_for(name, self._spec_of(layer))

    def op_for(self, name: str, spec: OpSpec) -> BoundOp:
        """The callable that serves an op for the layer that ``spec`` describes; raises as :meth:`op` does."""
        if name not in OPS:
            raise ValueError(f"op({name!r}): {_no_op(name)}")
        key = name, _concerning(name, spec)
        if key not in self._bound:
            self._bound[key] = self._resolve(*key)
        return self._bound[key]

    def prepared(self, names: Sequence[str], layer: Linear, heads: HeadSpec | None = None) -> Linear:
        """The layer as the kernels that serve these ops want its weight, or as it is.

        Args:
            names: the ops that will be called with the layer.
            layer: with a weight as a checkpoint has it.
            heads: that its output is split into; None: it is not.
        """
        spec = replace(self._spec, linear=layer.spec, heads=heads)
        simple = dict.fromkeys(inner for name in names for inner in self._serving(name, spec))
        for plugin, name in simple:
            kernel = self._kernel(plugin, name)
            if not isinstance(kernel, PreparingKernel):
                continue
            prepared = kernel.prepare(name, layer)
            if prepared is not layer:
                own = replace(spec, linear=prepared.spec)
                if all(not self._refusals(self._kernel(*each), each[1], own) for each in simple):
                    return prepared
        return layer

    def report(self) -> Sequence[Resolution]:
        """Who serves each op asked for so far, and why; each line once."""
        return list(dict.fromkeys(self._resolutions.values()))

    def check_used(self) -> None:
        """Return if every replacement serves something, once the model has asked for its ops.

        Raises:
            ConfigError: one does not: what contains it is replaced as a whole, or the model calls nothing that has it.
        """
        used = {name for name, _ in self._resolutions}
        for name in self._replacements:
            if name not in used:
                raise ConfigError(f"kernels.{name}: nothing calls it, {self._why_unused(name)}")

    def _spec_of(self, layer: Layer | None) -> OpSpec:
        if isinstance(layer, AttentionProjection):
            return replace(self._spec, linear=layer.qkv.spec, heads=layer.spec)
        return self._spec if layer is None else replace(self._spec, linear=layer.spec)

    def _context(self, spec: OpSpec, op: Callable[[str, OpSpec], BoundOp]) -> BindContext:
        return BindContext(spec, lambda name: op(name, spec), self._workspace)

    def _resolve(self, name: str, spec: OpSpec) -> BoundOp:
        if name in self._replacements:
            plugin, kernel = self._replacements[name]
            reasons = self._refusals(kernel, name, spec)
            if reasons:
                raise PluginError(f"kernels.{name}: {plugin!r} cannot serve it: {'; '.join(reasons)}")
            bound = kernel.bind(name, self._context(spec, self._op_of_a_whole))
            return self._take(name, spec, plugin, "named in the configuration", bound)
        chosen, refusals = self._default(name, spec)
        context = self._context(spec, self.op_for)
        if chosen is not None:
            bound = self._defaults[chosen].bind(name, context)
            return self._take(name, spec, chosen, "the first that serves it", bound)
        compose = OPS[name].compose
        if compose is None:
            raise PluginError(f"no kernel serves the op {name!r}: {'; '.join(refusals)}")
        parts = " + ".join(OPS[name].parts)
        return self._take(name, spec, parts, "; ".join(refusals), compose(context), is_composed=True)

    def _default(self, name: str, spec: OpSpec) -> tuple[str | None, list[str]]:
        """The default kernel that serves an op, and why the others do not."""
        replaced = [part for part in dict.fromkeys(parts_of(name)) if part in self._replacements]
        refusals = [f"{part} is replaced" for part in replaced]
        if replaced:
            return None, refusals
        for plugin, kernel in self._defaults.items():
            reasons = self._refusals(kernel, name, spec)
            if not reasons:
                return plugin, refusals
            refusals += [f"{plugin}: {reason}" for reason in reasons]
        return None, refusals

    def _serving(self, name: str, spec: OpSpec) -> list[tuple[str, str]]:
        """The plugin and op of each kernel that will be called for an op, parts of parts included, in order."""
        plugin = self._replacements[name][0] if name in self._replacements else self._default(name, spec)[0]
        if plugin is not None:
            return [(plugin, name)]
        return [each for part in OPS[name].parts for each in self._serving(part, spec)]

    def _kernel(self, plugin: str, name: str) -> Kernel:
        return self._replacements[name][1] if name in self._replacements else self._defaults[plugin]

    def _op_of_a_whole(self, name: str, spec: OpSpec) -> BoundOp:
        """What a kernel that is named for a whole op calls of others; no replacement serves only by being in one."""
        if name not in OPS or not any(part in self._replacements for part in (name, *parts_of(name))):
            return self.op_for(name, spec)
        if self._unreplaced is None:
            self._unreplaced = OpTable(self._spec, self._defaults, {}, self._workspace)
        return self._unreplaced.op_for(name, spec)

    def _refusals(self, kernel: Kernel, name: str, spec: OpSpec) -> list[str]:
        if name not in kernel.ops():
            return [f"does not implement {name}"]
        return kernel.supports(name, _concerning(name, spec))

    def _why_unused(self, name: str) -> str:
        whole = [other for other in self._replacements if name in parts_of(other)]
        if whole:
            is_or_are = "are" if len(whole) > 1 else "is"
            return f"because {', '.join(whole)} {is_or_are} replaced as a whole; leave {name} out, or what contains it"
        return "nor anything that contains it, with this model, device and sampler; leave it out"

    def _take(
        self, name: str, spec: OpSpec, implementation: str, reason: str, bound: BoundOp, *, is_composed: bool = False
    ) -> BoundOp:
        is_prepared = spec.linear is not None and spec.linear.scheme != ROWS and not is_composed
        scheme = spec.linear.scheme if spec.linear is not None and is_prepared else None
        self._resolutions[name, spec] = Resolution(name, implementation, reason, scheme)
        return bound


def _concerning(name: str, spec: OpSpec) -> OpSpec:
    """``spec`` without a layer or heads that the op has nothing to do with: an op that contains it may be asked for."""
    return replace(
        spec, linear=spec.linear if applies_linear(name) else None, heads=spec.heads if splits_heads(name) else None
    )


def _no_op(name: str) -> str:
    """That there is no such op, with those that are."""
    return f"no such op{did_you_mean(name, OPS) or ';'} the ops are {', '.join(OPS)}"
