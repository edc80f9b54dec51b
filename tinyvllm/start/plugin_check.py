"""Every plugin imported, created where that is possible, and asked what it says of a model and device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from tinyvllm.config import Resolved
from tinyvllm.errors import PluginError, TinyvllmError
from tinyvllm.interfaces import Kernel, Kind, OpSpec, PluginContext
from tinyvllm.models import read_config
from tinyvllm.models.model import Model
from tinyvllm.ops.checked_kernel import CheckedKernel
from tinyvllm.plugin_call import PluginName
from tinyvllm.registry import PluginInfo, State
from tinyvllm.runner.checked_attention import CheckedAttention
from tinyvllm.start.devices import choose_device
from tinyvllm.start.model_files import resolve_model
from tinyvllm.start.specs import attention_specs, op_spec, plugin_context


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of one plugin: ``ok``, ``cannot serve``, ``needs options`` or ``broken``, and why."""

    info: PluginInfo
    state: str
    detail: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether its author has something to mend."""
        return self.state == "broken"


def check_plugins(resolved: Resolved, kind: Kind | None = None, name: str | None = None) -> list[Verdict]:
    """A verdict for each plugin, or those of one kind or name, with the model and device of ``resolved``.

    Raises:
        LoadError: the model cannot be found.
        PluginError: no plugin is of that kind and name.
    """
    files = resolve_model(resolved.config.model, resolved.base)
    raw = files.read_json("config.json")
    assert raw is not None
    model = read_config(raw, str(files.folder / "config.json"))
    infos = [
        info
        for info in resolved.registry.available()
        if (kind is None or info.kind is kind) and (name is None or info.name == name)
    ]
    if not infos:
        if kind is not None and name is not None:
            resolved.registry.get(kind, name)  # says what is near
        raise PluginError(f"no plugin is called {name!r}; see plugins list")
    return [_verdict(info, resolved, model) for info in infos]


def _verdict(info: PluginInfo, resolved: Resolved, model: Model) -> Verdict:
    if info.kind is None:
        return Verdict(info, "broken", f"{info.group} is not an entry point group of tinyvllm")
    if info.state is State.INCOMPATIBLE:
        return Verdict(info, "broken", f"made for plugin API v{info.api_version}")
    context = plugin_context(resolved.config, model.shape, choose_device(resolved.config.device).name)
    registry = resolved.registry  # a fresh one, so that one broken plugin cannot spoil the next
    try:
        plugin = registry.get(info.kind, info.name)
        options = _options(resolved, info, plugin.options)
        filled = registry.create(info.kind, info.name, replace(context, options=options))
        reasons = list(_reasons(registry.named(info.kind, info.name), filled, context, model))
    except ValidationError as error:
        missing = ", ".join(str(detail["loc"][0]) for detail in error.errors() if detail["loc"])
        return Verdict(info, "needs options", missing)
    except TinyvllmError as error:
        return Verdict(info, "broken", str(error))
    if reasons:
        return Verdict(info, "cannot serve", "; ".join(dict.fromkeys(reasons)))
    return Verdict(info, "ok", plugin.description)


def _options(resolved: Resolved, info: PluginInfo, model: Any) -> Any:
    """The options that the configuration gives, or the plugin's defaults."""
    for section, options in resolved.plugin_options.items():
        if isinstance(options, model) and section.startswith(str(info.kind)):
            return options
    return model()


def _reasons(plugin: PluginName, filled: Any, context: PluginContext, model: Model) -> Iterator[str]:
    """Why it cannot serve; loaders, schedulers and samplers serve everything."""
    if plugin.kind is Kind.ATTENTION:
        attention = CheckedAttention(filled, plugin)
        for spec in dict.fromkeys(attention_specs(model, context)):
            yield from attention.supports(spec)
    elif plugin.kind is Kind.KERNEL:
        yield from _reasons_of_ops(CheckedKernel(filled, plugin), op_spec(context))


def _reasons_of_ops(kernel: Kernel, spec: OpSpec) -> Iterator[str]:
    """Each reason once, with the ops that it concerns unless it concerns all."""
    ops = kernel.ops()
    refused: dict[str, list[str]] = {}
    for op in ops:
        for reason in kernel.supports(op, spec):
            refused.setdefault(reason, []).append(op)
    for reason, concerned in refused.items():
        yield reason if len(concerned) == len(ops) else f"{', '.join(concerned)}: {reason}"
