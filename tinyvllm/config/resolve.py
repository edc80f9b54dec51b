"""A file, a mapping and the command line to one checked configuration that knows where each value came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tinyvllm._checks import escaped, shown
from tinyvllm._nearest import did_you_mean
from tinyvllm.config.accept_words import drop_words, move_words
from tinyvllm.config.check_core import check_core
from tinyvllm.config.check_plugins import check_plugins
from tinyvllm.config.overrides import Setting, apply_overrides
from tinyvllm.config.path_text import wrong_with_path
from tinyvllm.config.problems import Place, Problem, raise_problems, shown_value
from tinyvllm.config.schema import Config
from tinyvllm.config.tree import KeyPath, Tree, dotted, tree_from_mapping
from tinyvllm.config.yaml_source import MAX_BYTES, parse_yaml
from tinyvllm.errors import ConfigError, RequestError
from tinyvllm.registry import Registry
from tinyvllm.request import SamplingParams, asks_nothing

DEFAULT = "default"
_SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams))


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration that can be run.

    Attributes:
        config: the core's keys.
        plugin_options: an instance of its own options model for each chosen plugin, by section:
            ``loader``, ``attention``, ``scheduler``, ``sampler`` and ``kernels.<op>``.
        leaves: every resolved value by its path, options of plugins included.
        origins: for each value, by its dotted key, where it came from: ``default``, ``a.yaml:12``, ``--set ...``.
        base: the folder that relative paths in the configuration are relative to.
    """

    config: Config
    plugin_options: Mapping[str, BaseModel]
    leaves: Mapping[KeyPath, Any]
    origins: Mapping[str, str]
    base: Path

    def path(self, value: str | Path) -> Path:
        """A path of the configuration as an absolute one."""
        return (self.base / Path(value).expanduser()).absolute()

    def origin(self, path: KeyPath) -> str:
        """Where the value at ``path`` came from."""
        return self.origins[dotted(path)]

    @property
    def registry(self) -> Registry:
        """A fresh registry, one for each engine, with the local plugins that the configuration names."""
        return Registry(self.config.plugins, self.base)


def load_config(path: str | Path, overrides: Sequence[str | Setting] = (), plugins: Sequence[str] = ()) -> Resolved:
    """The configuration in a YAML file.

    Args:
        path: of the file.
        overrides: as of ``--set``: ``"scheduler.max_num_seqs=4"``; the value is YAML. Later ones win.
        plugins: local plugins beside those that the file names; files are relative to the current folder.

    Raises:
        ConfigError: everything that is wrong, in one report, each with file and line.
        PluginError: the same, where only plugins are wrong.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a configuration is the path of a YAML file or a mapping of its keys, got {shown(path)}")
    source = str(path)
    if wrong_with_path(source):
        raise ConfigError(f"{shown(source)}: the name of a configuration file {wrong_with_path(source)}")
    tree = parse_yaml(_read(Path(path), source), source)
    return _resolve(tree, Path(path).absolute().parent, overrides, plugins)


def config_from_mapping(
    mapping: Mapping[str, Any],
    *,
    source: str = "LLM(...)",
    overrides: Sequence[str | Setting] = (),
    plugins: Sequence[str] = (),
) -> Resolved:
    """The configuration in a mapping of the same keys; paths are relative to the current folder.

    Args:
        mapping: the keys.
        source: what problems and origins name.
        overrides: as for :func:`load_config`.
        plugins: as for :func:`load_config`.

    Raises:
        ConfigError: everything that is wrong, in one report.
        PluginError: the same, where only plugins are wrong.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{source}: a configuration is a mapping of its keys, got {shown(mapping)}")
    return _resolve(tree_from_mapping(mapping, source), Path.cwd(), overrides, plugins)


def _resolve(tree: Tree, base: Path, overrides: Sequence[str | Setting], plugins: Sequence[str]) -> Resolved:
    move_words(tree)
    apply_overrides(tree, overrides)
    drop_words(tree)
    _add_plugins(tree, plugins)
    _apply_load_format(tree)
    config = check_core(tree)
    plugin_options = check_plugins(tree, Registry(base=base))
    _check_combinations(tree)
    raise_problems(tree.problems)
    assert config is not None
    leaves = dict(_values(config, plugin_options))
    origins = {dotted(path): _origin(tree, path) for path in leaves}
    return Resolved(config, plugin_options, leaves, origins, base)


def _read(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        siblings = [str(each) for each in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{escaped(source)}: there is no such file{did_you_mean(str(path), siblings)}") from error
    except OSError as error:
        raise ConfigError(f"{escaped(source)}: cannot be read: {os.strerror(error.errno or 0)}") from error


def _add_plugins(tree: Tree, plugins: Sequence[str]) -> None:
    listed = tree.data.get("plugins", [])
    if not plugins or not isinstance(listed, list):
        return
    tree.data["plugins"] = listed
    for plugin in plugins:
        is_file = plugin.endswith(".py") or "/" in plugin
        reference = str(Path(plugin).expanduser().absolute()) if is_file else plugin
        tree.places[("plugins", len(listed))] = Place(f"--plugin {plugin}")
        listed.append(reference)


def _apply_load_format(tree: Tree) -> None:
    """``load_format: dummy`` is ``loader: {name: dummy}``; the two must agree."""
    format_, loader = tree.data.get("load_format"), tree.data.get("loader", {})
    if format_ not in ("safetensors", "dummy") or not isinstance(loader, dict):
        return  # auto changes nothing; anything else is the schema's to refuse
    name = loader.get("name", format_)
    if name != format_:
        message = f"load_format is {format_} but loader.name is {shown_value(name)}; keep one"
        tree.problems.append(Problem(tree.place(("load_format",)), message))
    elif "name" not in loader:
        tree.put(("loader", "name"), format_, tree.place(("load_format",)))


def _check_combinations(tree: Tree) -> None:
    """What the schema cannot say. Sampling field by field first, so that each mistake has its line."""
    if tree.get(("run", "prompts")) is not None and tree.get(("run", "prompts_file")) is not None:
        message = "run.prompts and run.prompts_file are both given; keep one"
        tree.problems.append(Problem(tree.place(("run", "prompts_file")), message))
    if tree.get(("cache", "kv_bytes")) is not None and tree.get(("cache", "num_blocks_override")) is not None:
        message = "cache.kv_bytes and cache.num_blocks_override are both given; keep one"
        tree.problems.append(Problem(tree.place(("cache", "kv_bytes")), message))
    sampling = tree.get(("run", "sampling"))
    if not isinstance(sampling, dict):
        return
    before = len(tree.problems)
    for field, value in sampling.items():
        path = ("run", "sampling", field)
        if field in _SAMPLING_FIELDS:
            _try_sampling(tree, path, {field: value})
        elif not asks_nothing(field, value):
            tree.problems.append(Problem(tree.place(path), partial(_wrong_with_sampling, {field: value})))
    if len(tree.problems) == before:
        _try_sampling(tree, ("run", "sampling"), sampling)


def _try_sampling(tree: Tree, path: KeyPath, mapping: dict[Any, Any]) -> None:
    message = _wrong_with_sampling(mapping)
    if message:
        tree.problems.append(Problem(tree.place(path), message))


def _wrong_with_sampling(mapping: dict[Any, Any]) -> str:
    try:
        SamplingParams.from_mapping(mapping)
    except RequestError as error:
        message = str(error)
        return f"run.{message}" if message.startswith("sampling") else message
    return ""


def _values(config: Config, plugin_options: Mapping[str, BaseModel]) -> Iterator[tuple[KeyPath, Any]]:
    """Each leaf with its path; the options of plugins as their own models gave them."""
    dumped = config.model_dump()
    for section, options in plugin_options.items():
        head, _, op = section.partition(".")
        (dumped[head][op] if op else dumped[head]).update(options.model_dump(mode="json"))
    yield from _leaves(dumped, ())


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict) and value and path != ("run", "sampling", "logit_bias"):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, str(value) if isinstance(value, Path) else value


def _origin(tree: Tree, path: KeyPath) -> str:
    """The place of the value itself; a section's place says nothing about a key that it does not hold."""
    if path in tree.places:
        return str(tree.places[path])
    if path[:1] == ("kernels",) and path[-1:] == ("name",) and path[:-1] in tree.places:
        return str(tree.places[path[:-1]])
    return DEFAULT
