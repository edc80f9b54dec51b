"""Who implements each op in one engine: resolved once at load, then plain callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyvllm._nearest import did_you_mean
from tinyvllm.errors import ConfigError, PluginError
from tinyvllm.interfaces import BindContext, Kernel, OpSpec
from tinyvllm.ops.catalogue import OPS
from tinyvllm.ops.device_values import Workspace

DEFAULT_KERNELS: Mapping[str, Sequence[str]] = {
    "cpu": ("reference",),
    "emulator": ("hopper", "nvrtc"),
    "cuda": ("hopper", "nvrtc"),
}
"""Kernel plugins that serve, on each device, what nobody replaced: tried in order."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """One line of the start-up report: who serves an op, and why."""

    op: str
    implementation: str
    reason: str


class OpTable:
    """Every op bound to one implementation.

    Args:
        spec: what an implementation must serve.
        defaults: kernels tried in order for ops that nobody replaced, by plugin name.
        replacements: op name to (plugin name, kernel), from the configuration. Replacing a part un-fuses what
            contains it. A replacement of a whole op is on its own: what it asks for of other ops is what serves them
            where nothing is replaced.
        workspace: of the device; None on the CPU.

    Raises:
        ConfigError: a replacement names an op that does not exist.
        PluginError: a replacement cannot serve the op, or nothing can.
    """

    def __init__(
        self,
        spec: OpSpec,
        defaults: Mapping[str, Kernel],
        replacements: Mapping[str, tuple[str, Kernel]],
        workspace: Workspace | None = None,
    ) -> None:
        self._spec = spec
        self._workspace = workspace
        self._context = BindContext(spec=spec, op=self.op, workspace=workspace)
        self._defaults = defaults
        self._replacements = replacements
        self._bound: dict[str, Callable[..., Any]] = {}
        self._resolutions: dict[str, Resolution] = {}
        self._unreplaced: OpTable | None = None
        for name in replacements:
            problem = self._no_op(name)
            if problem:
                raise ConfigError(f"kernels.{name}: {problem}")

    def op(self, name: str) -> Callable[..., Any]:
        """The callable that serves ``name``.

        Raises:
            ValueError: no such op is on this device; the caller, a kernel that is being bound, has a mistake.
            PluginError: nothing serves it.
        """
        if name not in self._bound:
            problem = self._no_op(name)
            if problem:
                raise ValueError(f"op({name!r}): {problem}")
            self._bound[name] = self._resolve(name)
        return self._bound[name]

    def report(self) -> Sequence[Resolution]:
        """Who serves each op asked for so far, and why."""
        return list(self._resolutions.values())

    def check_used(self) -> None:
        """Return if every replacement serves something, once the model has asked for its ops.

        Raises:
            ConfigError: one does not: what contains it is replaced as a whole, or the model calls nothing that has it.
        """
        for name in self._replacements:
            if name not in self._resolutions:
                raise ConfigError(f"kernels.{name}: nothing calls it, {self._why_unused(name)}")

    def _no_op(self, name: str) -> str:
        """Why no such op is called here, with those that are; empty if it is."""
        if name in OPS and OPS[name].is_on(self._spec.device):
            return ""
        known = [op.name for op in OPS.values() if op.is_on(self._spec.device)]
        what = "no such op" if name not in OPS else f"a model calls no such op on {self._spec.device}"
        return f"{what}{did_you_mean(name, known) or ';'} the ops are {', '.join(known)}"

    def _why_unused(self, name: str) -> str:
        whole = [other for other in self._replacements if name in self._all_parts(other)]
        if whole:
            is_or_are = "are" if len(whole) > 1 else "is"
            return f"because {', '.join(whole)} {is_or_are} replaced as a whole; leave {name} out, or what contains it"
        return (
            f"nor anything that contains it, with attention {self._spec.attention!r} and sampler "
            f"{self._spec.sampler!r}; leave it out"
        )

    def _resolve(self, name: str) -> Callable[..., Any]:
        context = self._context
        if name in self._replacements:
            plugin, kernel = self._replacements[name]
            reasons = self._refusals(kernel, name)
            if reasons:
                raise PluginError(f"kernels.{name}: {plugin!r} cannot serve it: {'; '.join(reasons)}")
            alone = BindContext(self._spec, self._op_of_a_whole, self._workspace)
            return self._take(name, plugin, "named in the configuration", kernel.bind(name, alone))
        replaced = [part for part in dict.fromkeys(self._all_parts(name)) if part in self._replacements]
        refusals = [f"{part} is replaced" for part in replaced]
        if not replaced:
            for plugin, kernel in self._defaults.items():
                reasons = self._refusals(kernel, name)
                if not reasons:
                    return self._take(name, plugin, "the first that serves it", kernel.bind(name, context))
                refusals += [f"{plugin}: {reason}" for reason in reasons]
        composed = OPS[name].composed(context)
        if composed is None:
            raise PluginError(f"no kernel serves the op {name!r}: {'; '.join(refusals)}")
        return self._take(name, " + ".join(OPS[name].parts_on(self._spec.device)), "; ".join(refusals), composed)

    def _op_of_a_whole(self, name: str) -> Callable[..., Any]:
        """What a kernel that is named for a whole op calls of others; no replacement serves only by being in one."""
        if self._no_op(name) or not any(part in self._replacements for part in (name, *self._all_parts(name))):
            return self.op(name)
        if self._unreplaced is None:
            self._unreplaced = OpTable(self._spec, self._defaults, {}, self._workspace)
        return self._unreplaced.op(name)

    def _refusals(self, kernel: Kernel, name: str) -> list[str]:
        if name not in kernel.ops():
            return [f"does not implement {name}"]
        return kernel.supports(name, self._spec)

    def _all_parts(self, name: str) -> list[str]:
        parts = OPS[name].parts_on(self._spec.device)
        return [inner for part in parts for inner in (part, *self._all_parts(part))]

    def _take(self, name: str, implementation: str, reason: str, bound: Callable[..., Any]) -> Callable[..., Any]:
        self._resolutions[name] = Resolution(name, implementation, reason)
        return bound
