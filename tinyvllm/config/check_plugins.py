"""Each section against the plugin that it names, whose own model validates the keys that are not the core's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from tinyvllm._checks import shown
from tinyvllm._nearest import did_you_mean, nearest
from tinyvllm.config.check_core import core_keys, problems_of, section_model, unknown_key
from tinyvllm.config.other_words import LATER, NEVER
from tinyvllm.config.path_text import wrong_with_path
from tinyvllm.config.problems import Problem, shown_value
from tinyvllm.config.schema import MAX_PLUGINS, Config, Section
from tinyvllm.config.tree import KeyPath, Tree, dotted
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Kind, Plugin
from tinyvllm.ops.catalogue import OPS
from tinyvllm.registry import Registry

_MAX_SUSPICIOUS_KEYS = 100  # looking for the nearest word takes time
_MAX_NAME_CHARACTERS = 200  # so that messages stay short


@dataclass(frozen=True, slots=True)
class _Choice:
    """A section that names a plugin. ``core`` are the section's keys that are the core's."""

    kind: Kind
    path: KeyPath
    name: str
    core: type[BaseModel]
    given: dict[Any, Any]

    @property
    def options(self) -> dict[Any, Any]:
        return {key: value for key, value in self.given.items() if key not in self.core.model_fields}


def check_plugins(tree: Tree, registry: Registry) -> dict[str, BaseModel]:
    """The validated options of every chosen plugin, by section (``scheduler``, ``kernels.rms_norm``).

    Whatever is wrong, unknown plugins included, joins ``tree.problems``.
    """
    _load_local(tree, registry)
    _check_op_names(tree)
    chosen: list[tuple[_Choice, Plugin[Any]]] = []
    for choice in _choices(tree):
        try:
            if len(choice.name) > _MAX_NAME_CHARACTERS:
                got = f"a name of {len(choice.name):,} characters, {shown_value(choice.name)}"
                raise PluginError(f"there is no {choice.kind.value} plugin with {got}; list them with: plugins list")
            chosen.append((choice, registry.get(choice.kind, choice.name)))
        except PluginError as error:
            place = tree.place((*choice.path, "name"))
            tree.problems.append(Problem(place, f"{dotted(choice.path)}: {error}", is_plugin=True))
            tree.problems += _suspicious_keys(tree, choice)
    elsewhere = {
        option: dotted((*choice.path, option)) for choice, plugin in chosen for option in plugin.options.model_fields
    }
    return {
        dotted(choice.path): options
        for choice, plugin in chosen
        if (options := _check_options(tree, choice, plugin, elsewhere)) is not None
    }


def _load_local(tree: Tree, registry: Registry) -> None:
    references = tree.get(("plugins",))
    for index, reference in enumerate(references[:MAX_PLUGINS] if isinstance(references, list) else []):
        if not isinstance(reference, str) or wrong_with_path(reference):
            continue  # the schema says so
        try:
            registry.load_local(reference)
        except PluginError as error:
            tree.problems.append(Problem(tree.place(("plugins", index)), f"plugins: {error}", is_plugin=True))


def _check_op_names(tree: Tree) -> None:
    """Keys of ``kernels`` that no model calls; which device an op is for is known once the device is chosen."""
    kernels = tree.data.get("kernels")
    for op in kernels if isinstance(kernels, dict) else ():
        if op not in OPS:
            tree.problems.append(Problem(tree.place(("kernels", op)), partial(_unknown_op, op)))


def _unknown_op(op: Any) -> str:
    return f"kernels: there is no op {shown(op)}{did_you_mean(op, OPS) or ';'} the ops are {', '.join(OPS)}"


def _choices(tree: Tree) -> Iterator[_Choice]:
    """The sections that are mappings, with their name or the default one; the schema refuses what else they may be."""
    for kind in Kind:
        if kind is Kind.KERNEL:
            continue
        core = section_model(Config.model_fields[kind.value].annotation)
        assert core is not None
        given = tree.data.get(kind.value, {})
        name = given.get("name", core.model_fields["name"].default) if isinstance(given, dict) else None
        if isinstance(name, str):
            yield _Choice(kind, (kind.value,), name, core, given)
    kernels = tree.data.get("kernels")
    for op, given in kernels.items() if isinstance(kernels, dict) else ():
        section = {"name": given} if isinstance(given, str) else given
        if op in OPS and isinstance(section, dict) and isinstance(section.get("name"), str):
            yield _Choice(Kind.KERNEL, ("kernels", op), section["name"], Section, section)


def _check_options(tree: Tree, choice: _Choice, plugin: Plugin[Any], elsewhere: dict[str, str]) -> BaseModel | None:
    clash = sorted(set(plugin.options.model_fields) & set(choice.core.model_fields))
    if clash:
        message = f"{dotted(choice.path)}: the option {clash[0]!r} of plugin {choice.name!r} is a key of the core's"
        tree.problems.append(Problem(tree.place(choice.path), f"{message}; its author must rename it", is_plugin=True))
        return None
    known = {**choice.core.model_fields, **plugin.options.model_fields}
    unknown = {key: None for key in choice.options if key not in plugin.options.model_fields}
    for key in unknown:
        path = (*choice.path, key)
        tree.problems.append(Problem(tree.place(path), partial(unknown_key, path, known, elsewhere)))
    given = {key: value for key, value in choice.options.items() if key not in unknown}
    try:
        # As JSON, because strictness then means what a reader of YAML expects: "4" is no number and true is not 1,
        # while text becomes an Enum or a Path and a list a tuple.
        return plugin.options.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        tree.problems += problems_of(error, tree, choice.path, plugin.options)
        return None


def _suspicious_keys(tree: Tree, choice: _Choice) -> list[Problem]:
    """Of an unknown plugin no option can be checked; but a misspelt key of the core's, or a later version's, shows."""
    core = [key for key in choice.core.model_fields if key != "name"]
    found = []
    for key in islice(choice.options, _MAX_SUSPICIOUS_KEYS):
        if key in LATER or key in NEVER or key in core_keys() or nearest(key, core):
            path = (*choice.path, key)
            found.append(Problem(tree.place(path), partial(unknown_key, path, choice.core.model_fields)))
    return found
