"""``--set a.b=c`` and the other flags of the command line, written over the values of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvllm.config.problems import Place, Problem
from tinyvllm.config.tree import KeyPath, Tree
from tinyvllm.config.yaml_source import parse_value
from tinyvllm.errors import ConfigError

# Files: on the command line they are relative to the current folder, not to the configuration file.
_FILE_KEYS = frozenset({("run", "prompts_file"), ("run", "output"), ("chat_template",)})
_FOLDER_KEYS = frozenset({("model",), ("tokenizer",)})


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
            source, _, message = str(error).partition(": ")
            tree.problems.append(Problem(Place(source), message))
            continue
        tree.put(setting.path, _from_here(setting), Place(setting.source))


def parse_setting(text: str) -> Setting:
    """``"scheduler.max_num_seqs=4"``; the value is YAML.

    Raises:
        ConfigError: there is no ``=``, a part of the key is empty, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    source = f"--set {text}"
    if not equals:
        raise ConfigError(f"{source}: must be key=value, as in --set scheduler.max_num_seqs=4")
    parts = tuple(part.strip() for part in key.split("."))
    if not all(parts):
        raise ConfigError(f"{source}: the key {key!r} has an empty part; write section.key=value")
    return Setting(parts, parse_value(value, source), source)


def _from_here(setting: Setting) -> Any:
    value = setting.value
    if not isinstance(value, str) or not value:
        return value
    is_folder = setting.path in _FOLDER_KEYS and (value[0] in "./~" or Path(value).is_dir()) and value != "demo"
    return str(Path(value).expanduser().absolute()) if is_folder or setting.path in _FILE_KEYS else value
