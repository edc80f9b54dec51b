"""Everything wrong with a configuration, in one report: where each problem is, and the line it is on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyvllm.errors import ConfigError, PluginError

_MAX_REPORTED = 50
_MAX_SHOWN_CHARS = 100


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value came from.

    Attributes:
        source: a file as the user named it, ``--set a.b=c``, ``LLM(...)``.
        line: counted from 1; 0 where the source has no lines.
        text: of the line.
    """

    source: str
    line: int = 0
    text: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend. ``is_plugin`` where a plugin, not the configuration, is to blame."""

    place: Place
    message: str
    is_plugin: bool = False


def raise_problems(problems: Sequence[Problem]) -> None:
    """Return if there are none.

    Raises:
        PluginError: every one of them is about a plugin.
        ConfigError: otherwise; in both cases the message is the whole report.
    """
    if not problems:
        return
    error = PluginError if all(problem.is_plugin for problem in problems) else ConfigError
    raise error(report(problems))


def report(problems: Sequence[Problem]) -> str:
    """A line for each problem, the file's in the order of the file, with the text of its line below."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem.place.line or 10**9)
    shown = [_entry(problem) for problem in ordered[:_MAX_REPORTED]]
    if len(ordered) == 1:
        return shown[0]
    more = [f"... and {len(ordered) - _MAX_REPORTED} more"] if len(ordered) > _MAX_REPORTED else []
    return "\n".join([f"{len(ordered)} problems in the configuration", *shown, *more])


def shown_value(value: Any) -> str:
    """``value`` in YAML's spelling, cut short."""
    if isinstance(value, dict):
        return "a mapping" if value else "{}"
    if isinstance(value, list):
        return "a list" if value else "[]"
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


def _entry(problem: Problem) -> str:
    place = problem.place
    quoted = f"\n  {place.line:>4} | {place.text[:_MAX_SHOWN_CHARS]}" if place.text.strip() else ""
    # A traceback, if there is one, comes after the line that it is about.
    head, newline, rest = problem.message.partition("\n")
    return f"{place}: {head}{quoted}{newline}{rest}"
