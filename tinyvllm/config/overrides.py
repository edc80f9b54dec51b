"""``--set a.b=c`` and the other flags of the command line, written over the values of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvllm._checks import escaped, shown
from tinyvllm.config.accept_words import home_of
from tinyvllm.config.path_text import wrong_with_path
from tinyvllm.config.problems import Place, Problem
from tinyvllm.config.tree import KeyPath, Tree
from tinyvllm.config.yaml_source import parse_value
from tinyvllm.errors import ConfigError

# Files: on the command line they are relative to the current folder, not to the configuration file.
_FILE_KEYS = frozenset({("run", "prompts_file"), ("run", "output"), ("chat_template",)})
_FOLDER_KEYS = frozenset({("model",), ("tokenizer",)})
_MAX_SHOWN_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Setting:
    """One value to write over the file's. ``source`` is what the user typed: ``--set a.b=c``, ``--max-tokens``."""

    path: KeyPath
    value: Any
    source: str


def apply_overrides(tree: Tree, overrides: Sequence[str | Setting]) -> None:
    """Write ``overrides`` into ``tree``, later ones over earlier ones; what is wrong joins ``tree.problems``."""
    for override in overrides:
        try:
            setting = override if isinstance(override, Setting) else parse_setting(override)
        except ConfigError as error:
            source = _source(override) if isinstance(override, str) else override.source
            tree.problems.append(Problem(Place(source), str(error).removeprefix(f"{escaped(source)}: ")))
            continue
        tree.put(home_of(setting.path), _from_here(setting), Place(setting.source))


def parse_setting(text: str) -> Setting:
    """``"scheduler.max_num_seqs=4"``; the value is YAML.

    Raises:
        ConfigError: there is no ``=``, a part of the key is empty, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    source = _source(text)
    if not equals:
        raise ConfigError(f"{escaped(source)}: must be key=value, as in --set scheduler.max_num_seqs=4")
    parts = tuple(part.strip() for part in key.split("."))
    if not all(parts):
        raise ConfigError(f"{escaped(source)}: the key {shown(key)} has an empty part; write section.key=value")
    return Setting(parts, parse_value(value, source), source)


def _source(text: str) -> str:
    is_long = len(text) > _MAX_SHOWN_CHARACTERS
    return f"--set {text[:_MAX_SHOWN_CHARACTERS]}{'...' if is_long else ''}"


def _from_here(setting: Setting) -> Any:
    value = setting.value
    if not isinstance(value, str) or not value:
        return value
    if setting.path not in _FILE_KEYS | _FOLDER_KEYS or wrong_with_path(value):
        return value  # what is wrong with a path, the schema says
    is_folder = setting.path in _FOLDER_KEYS and (value[0] in "./~" or Path(value).is_dir()) and value != "demo"
    return str(Path(value).expanduser().absolute()) if is_folder or setting.path in _FILE_KEYS else value
