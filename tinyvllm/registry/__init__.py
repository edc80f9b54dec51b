"""Who can fill a socket: plugins listed without importing them, and loaded one at a time, by name.

A registry belongs to one engine. A plugin that cannot be imported matters only to a configuration that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pluggy
from pydantic import BaseModel

from tinyvllm._nearest import did_you_mean
from tinyvllm.errors import PluginError, TinyvllmError
from tinyvllm.hookspecs import PROJECT, HookSpecs
from tinyvllm.interfaces import API_VERSION, SOCKETS, HostSampler, Kind, Plugin, PluginContext
from tinyvllm.plugin_call import PluginName
from tinyvllm.registry.sources import Announcement, announcements, describe_failure, import_entry_point, import_local

HOOKS = {
    Kind.LOADER: "register_loaders",
    Kind.ATTENTION: "register_attention",
    Kind.SCHEDULER: "register_schedulers",
    Kind.SAMPLER: "register_samplers",
    Kind.KERNEL: "register_kernels",
}


class State(StrEnum):
    """What can be said of a plugin without importing it."""

    READY = "ready"
    LOCAL = "local"
    INCOMPATIBLE = "incompatible"
    DUPLICATE = "duplicate"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One line of ``plugins list``.

    Attributes:
        kind: None where the entry point group names no socket (``state`` is then ``unreachable``).
        name: what a configuration chooses.
        distribution: what was installed, or the local file or module.
        version: of the distribution; empty for local code.
        api_version: of the interfaces that the plugin was written for.
        state: ready, local (named in ``plugins``, hence loaded), incompatible (another API version),
            duplicate (two distributions use the name) or unreachable (no such group).
        group: the entry point group; empty for local code.
    """

    kind: Kind | None
    name: str
    distribution: str
    version: str
    api_version: int
    state: State
    group: str = ""


@dataclass(frozen=True, slots=True)
class _Local:
    kind: Kind
    plugin: Plugin[Any]
    origin: str


class Registry:
    """The plugins that one engine can choose from.

    Args:
        local: plugins to load outright: ``./file.py`` or ``package.module``.
        base: the folder that local files are relative to; None: the current one.
    """

    def __init__(self, local: Sequence[str] = (), base: Path | None = None) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self._announced = announcements()
        self._local: list[_Local] = []
        self._base = base or Path.cwd()
        for reference in local:
            self.load_local(reference)

    def available(self) -> list[PluginInfo]:
        """Every plugin, installed or local, in order of kind and name; installed ones are not imported."""
        infos = [self._info(announcement) for announcement in self._announced]
        infos += [
            PluginInfo(each.kind, each.plugin.name, each.origin, "", each.plugin.api_version, State.LOCAL)
            for each in self._local
        ]
        order = list(Kind)
        return sorted(infos, key=lambda each: (order.index(each.kind) if each.kind else len(order), each.name))

    def names(self, kind: Kind) -> list[str]:
        """The names that :meth:`get` can find."""
        installed = [each.name for each in self._announced if _is_reachable(each, kind)]
        return sorted({*installed, *(each.plugin.name for each in self._local if each.kind is kind)})

    def get(self, kind: Kind, name: str) -> Plugin[Any]:
        """The plugin of that kind and name; imports it, and nothing else.

        Raises:
            PluginError: there is none, there are two, or it is broken; says what to do.
        """
        installed = [each for each in self._announced if _is_reachable(each, kind) and each.name == name]
        local = [each for each in self._local if each.kind is kind and each.plugin.name == name]
        if len(installed) + len(local) > 1:
            owners = " and ".join([each.origin for each in installed] + [each.origin for each in local])
            raise PluginError(
                f"two {kind.value} plugins are called {name!r}: {owners}; uninstall or rename one of them"
            )
        if local:
            return local[0].plugin
        if not installed:
            raise PluginError(self._unknown(kind, name))
        return self._load(kind, installed[0])

    def create(self, kind: Kind, name: str, context: PluginContext) -> Any:
        """What fills the socket: the plugin's ``create(context)``, checked against the socket's protocol.

        Raises:
            PluginError: as for :meth:`get`; creating failed; or methods are missing.
            TinyvllmError: whatever of ours ``create`` raised.
        """
        plugin = self.get(kind, name)
        what = f"{kind.value} {name!r} of {self.origin(kind, name)}"
        try:
            filled = plugin.create(context)
        except (TinyvllmError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit, and what a library in another language panics with, included
            raise PluginError(f"{what} cannot be created: {describe_failure(error)}") from error
        missing = missing_methods(kind, filled)
        if missing:
            socket = SOCKETS[kind].__name__
            raise PluginError(f"{what} is no {socket}: {type(filled).__name__} has no method {', '.join(missing)}")
        return filled

    def origin(self, kind: Kind, name: str) -> str:
        """Where a plugin comes from, for messages: ``tinyvllm 0.1.0`` or the local file."""
        origins = [each.origin for each in self._local if each.kind is kind and each.plugin.name == name]
        origins += [each.origin for each in self._announced if each.kind is kind and each.name == name]
        return origins[0] if origins else "?"

    def named(self, kind: Kind, name: str) -> PluginName:
        """A plugin's name with where it comes from, for messages."""
        return PluginName(kind, name, self.origin(kind, name))

    def load_local(self, reference: str) -> None:
        """Load ``./file.py`` or ``package.module`` and everything that it registers.

        Raises:
            PluginError: it cannot be imported, registers nothing, or breaks the rules.
        """
        module = import_local(reference, self._base)
        origin = f"local plugin {reference}"
        self._register(module, origin)
        found = [
            _Local(kind, plugin, origin)
            for kind in Kind
            if self._implements(module, kind)
            for plugin in self._call_hook(module, kind, origin)
        ]
        if not found:
            raise PluginError(
                f"{origin} registers nothing; mark a function with @hookimpl: {', '.join(HOOKS.values())}"
            )
        self._local += found

    def _load(self, kind: Kind, announcement: Announcement) -> Plugin[Any]:
        module = import_entry_point(announcement)
        origin = f"{announcement.origin} ({announcement.entry_point.value})"
        self._register(module, origin)
        if not self._implements(module, kind):
            raise PluginError(f"{origin} has no function {HOOKS[kind]} marked with @hookimpl")
        plugins = self._call_hook(module, kind, origin)
        chosen = [plugin for plugin in plugins if plugin.name == announcement.name]
        if not chosen:
            registered = ", ".join(plugin.name for plugin in plugins) or "nothing"
            expected = f"the entry point of {announcement.group} is called {announcement.name!r}"
            raise PluginError(f"{origin} registers {registered}, but {expected}; the two names must be equal")
        return chosen[0]

    def _register(self, module: Any, origin: str) -> None:
        if self._manager.is_registered(module):
            return
        try:
            self._manager.register(module)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            if self._manager.is_registered(module):
                self._manager.unregister(module)
            raise PluginError(f"{origin} is not a valid plugin: {error}{_misspelt_hook(module)}") from error

    def _implements(self, module: Any, kind: Kind) -> bool:
        implementations = getattr(self._manager.hook, HOOKS[kind]).get_hookimpls()
        return any(implementation.plugin is module for implementation in implementations)

    def _call_hook(self, module: Any, kind: Kind, origin: str) -> list[Plugin[Any]]:
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
        try:
            results = self._manager.subset_hook_caller(HOOKS[kind], others)()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, and what a library in another language panics with, included
            raise PluginError(f"{HOOKS[kind]} of {origin} failed: {describe_failure(error)}") from error
        # pluggy leaves None out of the results.
        returned = results[0] if results else None
        if not isinstance(returned, list) or not all(isinstance(each, Plugin) for each in returned):
            shown = [type(each).__name__ for each in returned] if isinstance(returned, list) else returned
            raise PluginError(f"{HOOKS[kind]} of {origin} must return a list of Plugin, got {shown!r:.200}")
        for plugin in returned:
            _check_plugin(plugin, kind, origin)
        names = [plugin.name for plugin in returned]
        if len(set(names)) < len(names):
            raise PluginError(f"{HOOKS[kind]} of {origin} registers a name twice: {', '.join(names)}")
        return returned

    def _info(self, announcement: Announcement) -> PluginInfo:
        return PluginInfo(
            announcement.kind,
            announcement.name,
            announcement.distribution,
            announcement.version,
            announcement.api_version,
            self._state(announcement),
            announcement.group,
        )

    def _state(self, announcement: Announcement) -> State:
        kind = announcement.kind
        if kind is None:
            return State.UNREACHABLE
        if announcement.api_version != API_VERSION:
            return State.INCOMPATIBLE
        rivals = [each for each in self._announced if _is_reachable(each, kind) and each.name == announcement.name]
        rivals_here = [each for each in self._local if each.kind is kind and each.plugin.name == announcement.name]
        return State.DUPLICATE if len(rivals) + len(rivals_here) > 1 else State.READY

    def _unknown(self, kind: Kind, name: str) -> str:
        namesakes = [each for each in self._announced if each.name == name and each.group != kind.entry_point_group]
        for each in namesakes:
            if each.kind is kind:
                return (
                    f"{kind.value} {name!r} of {each.origin} was written for plugin API v{each.api_version}, "
                    f"this tinyvllm has v{API_VERSION}; install a release of {each.distribution} made for it"
                )
        known = self.names(kind)
        hint = did_you_mean(name, known)
        if namesakes:
            hint += f"; {namesakes[0].origin} announces {name!r} in {namesakes[0].group}, not {kind.entry_point_group}"
        installed = ", ".join(known) or "none"
        return (
            f"there is no {kind.value} plugin {name!r}{hint or ';'} installed: {installed}; "
            "others come with pip install, or from a file of yours named under plugins: [./my_plugin.py]"
        )


def missing_methods(kind: Kind, filled: object) -> list[str]:
    """Names of the methods that the socket of ``kind`` asks for and ``filled`` has not."""
    if kind is Kind.SAMPLER and isinstance(filled, HostSampler):
        return []
    asked = [name for name, value in vars(SOCKETS[kind]).items() if callable(value) and not name.startswith("_")]
    return [name for name in asked if not callable(getattr(filled, name, None))]


def _is_reachable(announcement: Announcement, kind: Kind) -> bool:
    return announcement.kind is kind and announcement.api_version == API_VERSION


def _check_plugin(plugin: Plugin[Any], kind: Kind, origin: str) -> None:
    what = f"{kind.value} {plugin.name!r} of {origin}"
    if plugin.api_version != API_VERSION:
        raise PluginError(f"{what} was written for plugin API v{plugin.api_version}, this tinyvllm has v{API_VERSION}")
    if not callable(plugin.create):
        raise PluginError(f"{what}: create must be callable, got {plugin.create!r:.100}")
    options: Any = plugin.options
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise PluginError(f"{what}: options must be a subclass of tinyvllm.interfaces.Options, got {options!r:.100}")
    if options.model_config.get("extra") != "forbid":
        remedy = "derive it from tinyvllm.interfaces.Options"
        raise PluginError(
            f"{what}: its options model {options.__name__} would accept and ignore unknown keys; {remedy}"
        )


def _misspelt_hook(module: Any) -> str:
    for name in dir(module):
        options = getattr(getattr(module, name, None), f"{PROJECT}_impl", None)
        if options is not None and name not in HOOKS.values():
            return f"{did_you_mean(name, HOOKS.values())} The hooks are {', '.join(HOOKS.values())}"
    return ""
