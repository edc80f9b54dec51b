"""A resolved configuration as YAML that says of every value where it came from; reading it back gives the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tinyvllm.config.resolve import Resolved
from tinyvllm.config.yaml_source import parse_value
from tinyvllm.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z_./~][\w./~+-]*")
# What YAML does not let stand, and what it takes for the end of a line.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_INDENT = "  "


def show(resolved: Resolved) -> str:
    """The lines ``key: value  # origin``, sections indented."""
    lines = list(_lines(resolved))
    width = min(60, max(len(line) for line, _ in lines))
    return "\n".join(f"{line:<{width}}  # {_escaped(origin)}" if origin else line for line, origin in lines)


def _lines(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Each line of YAML with the origin of its value; sections have none."""
    previous: tuple[str, ...] = ()
    for path, value in resolved.leaves.items():
        words = tuple(map(str, path))
        for depth in range(len(words) - 1):
            if words[: depth + 1] != previous[: depth + 1]:
                yield f"{_INDENT * depth}{_scalar(words[depth])}:", ""
        previous = words[:-1]
        yield f"{_INDENT * (len(words) - 1)}{_scalar(words[-1])}: {_value(value)}", resolved.origin(path)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _scalar(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(key: Any) -> str:
    return _scalar(key) if isinstance(key, str) else json.dumps(key)


def _number(value: float) -> str:
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), json.dumps(value))


def _scalar(text: str) -> str:
    """``text`` plain where YAML reads the same text back, else in double quotes."""
    if _PLAIN.fullmatch(text):
        try:
            if parse_value(text, "") == text:
                return text
        except ConfigError:
            pass
    return _escaped(json.dumps(text, ensure_ascii=False))


def _escaped(text: str) -> str:
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
