"""Everything wrong with a configuration, in one report: where each problem is, and the line it is on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyvllm._checks import escaped, shown
from tinyvllm.errors import ConfigError, PluginError

_MAX_REPORTED = 10
_MAX_SHOWN_CHARACTERS = 100
_MAX_INT64_BITS = 64


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
        source = escaped(self.source)
        return f"{source}:{self.line}" if self.line else source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend.

    Attributes:
        place: where.
        message: what is wrong and what to write instead, or a function that finds the words: only the problems that
            are printed need them, and looking for the nearest of many words takes time.
        is_plugin: a plugin, not the configuration, is to blame.
    """

    place: Place
    message: str | Callable[[], str]
    is_plugin: bool = False

    @property
    def text(self) -> str:
        """The message in words."""
        return self.message if isinstance(self.message, str) else self.message()


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
    """A line for each of the first ten problems, in the order of the file, with the text of its line below."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem.place.line or 10**9)
    lines = [_entry(problem) for problem in ordered[:_MAX_REPORTED]]
    if len(ordered) == 1:
        return lines[0]
    more = [f"... and {len(ordered) - _MAX_REPORTED} more"] if len(ordered) > _MAX_REPORTED else []
    return "\n".join([f"{len(ordered)} problems in the configuration", *lines, *more])


def shown_value(value: Any) -> str:
    """``value`` in YAML's spelling, on one line of printable characters, cut short."""
    if isinstance(value, dict):
        return "a mapping" if value else "{}"
    if isinstance(value, list):
        return "a list" if value else "[]"
    if isinstance(value, str):
        text, is_cut = value[:_MAX_SHOWN_CHARACTERS], len(value) > _MAX_SHOWN_CHARACTERS
        return f"'{escaped(text)}{'...' if is_cut else ''}'"
    if isinstance(value, int) and value.bit_length() > _MAX_INT64_BITS:
        return shown(value)
    text = escaped(json.dumps(value, default=repr, ensure_ascii=False))
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}..."


def _entry(problem: Problem) -> str:
    place = problem.place
    quoted = f"\n  {place.line:>4} | {escaped(place.text[:_MAX_SHOWN_CHARACTERS])}" if place.text.strip() else ""
    # A traceback, if there is one, comes after the line that it is about.
    head, newline, rest = "\n".join(escaped(line) for line in problem.text.split("\n")).partition("\n")
    return f"{place}: {head}{quoted}{newline}{rest}"
