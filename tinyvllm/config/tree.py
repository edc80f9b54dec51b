"""The values of a configuration before they are checked, each with the place that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyvllm._checks import escaped, has_lone_surrogate, shown
from tinyvllm.config.problems import Place, Problem, shown_value
from tinyvllm.errors import ConfigError

KeyPath = tuple[Any, ...]

_MAX_DEPTH = 32
_MAX_KEY_CHARACTERS = 60
LONE_SURROGATE = "must be text that UTF-8 can hold, without half of a surrogate pair"


@dataclass(slots=True)
class Tree:
    """Nested mappings, lists and scalars. Changed only while a configuration is being resolved.

    Attributes:
        root: the place of the whole.
        data: the values.
        places: the place of each value and of each section that was written.
        problems: what is already known to be wrong.
    """

    root: Place
    data: dict[Any, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Where ``path`` was written, or else the section around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.root)

    def get(self, path: KeyPath) -> Any:
        """The value at ``path``; None if it was not given."""
        value: Any = self.data
        for key in path:
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value

    def put(self, path: KeyPath, value: Any, place: Place) -> None:
        """Set the value at ``path``, making sections on the way; a scalar on the way is a problem."""
        section = self.data
        for depth, key in enumerate(path[:-1], 1):
            inner = section.setdefault(key, {})
            if not isinstance(inner, dict):
                got = f"{dotted(path[:depth])} is {shown_value(inner)}, not a section"
                self.problems.append(Problem(place, f"{dotted(path)} cannot be set: {got}"))
                return
            self.places.setdefault(path[:depth], place)
            section = inner
        section[path[-1]] = value
        self.forget(path)
        self.mark(path, value, place)

    def forget(self, path: KeyPath) -> None:
        """Drop the places of ``path`` and of all below it."""
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]

    def mark(self, path: KeyPath, value: Any, place: Place) -> None:
        """Note that ``value`` and all below it came from ``place``."""
        self.places[path] = place
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in children:
            self.mark((*path, key), child, place)


def tree_from_mapping(mapping: Mapping[str, Any], source: str) -> Tree:
    """A tree whose every value came from ``source``; ``mapping`` is copied.

    Raises:
        ConfigError: a value is not of the kinds that YAML has.
    """
    tree = Tree(Place(source))
    tree.data = _plain(mapping, (), source)
    tree.mark((), tree.data, tree.root)
    return tree


def dotted(path: KeyPath) -> str:
    """``scheduler.max_num_seqs``, ``run.prompts[2]``; each key printable and cut short."""
    text = "".join(f"[{shown(key)}]" if isinstance(key, int) else f".{shown_key(key)}" for key in path)
    return text.removeprefix(".")


def shown_key(key: Any) -> str:
    """A key as it was written, printable and cut short."""
    text = key if isinstance(key, str) else shown(key)
    return escaped(text[:_MAX_KEY_CHARACTERS]) + ("..." if len(text) > _MAX_KEY_CHARACTERS else "")


def _plain(value: Any, path: KeyPath, source: str) -> Any:
    """``value`` as YAML would give it: dict, list, str, int, float, bool, None."""
    if len(path) > _MAX_DEPTH:
        raise ConfigError(f"{source}: {dotted(path[:3])}... is nested deeper than {_MAX_DEPTH}; does it hold itself?")
    if isinstance(value, str) and has_lone_surrogate(value):
        raise ConfigError(f"{source}: {dotted(path)} {LONE_SURROGATE}, got {shown(value)}")
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, str) and has_lone_surrogate(key):
                raise ConfigError(f"{source}: the key {dotted((*path, key))} {LONE_SURROGATE}")
        return {key: _plain(inner, (*path, key), source) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, (*path, index), source) for index, inner in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    kinds = "text, a number, a flag, a list or a mapping"
    raise ConfigError(f"{source}: {dotted(path)} must be {kinds}, got a {type(value).__name__}")
