"""Results of a benchmark as a table for people: numbers with their units. Files have the plain numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tinyvllm.cli.text_table import aligned

_PEER_FIGURES = ("ms_per_token", "tokens_per_s", "speedup")
# What the name of a figure says about its unit; the first that is found counts.
_UNITS = tuple(
    (re.compile(pattern), unit)
    for pattern, unit in (
        (r"tokens_per_s$", "tokens/s"),
        (r"(^|_)ms(_|$)", "ms"),
        (r"(^|_)us(_|$)", "us"),
        (r"_s$|^seconds$", "s"),
        (r"_bytes$", "B"),
        (r"^bandwidth$", "B/s"),
        (r"^matrix_rate$", "FLOP/s"),
        (r"(^|_)price$|^speedup$|_ratio$", "x"),
        (r"_len$", "tokens"),
    )
)
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SCALED = ("B", "B/s", "FLOP/s")


def shown(results: Sequence[dict[str, Any]]) -> str:
    """A table with a row a result, or a column a result if that is narrower."""
    rows = [_flat(result) for result in results]
    names = [name for name in rows[0] if any(row.get(name) is not None for row in rows)]
    cells = [[cell(name, row.get(name)) for name in names] for row in rows]
    if len(names) <= len(rows):
        return aligned(names, cells)
    first, *others = zip(names, *cells, strict=True)
    return aligned(first, others)


def cell(name: str, value: Any) -> str:
    """The value of the figure ``name`` with its unit: ``1.56 ms``, ``19.2 GB/s``; nothing for None."""
    if value is None or isinstance(value, bool | str):
        return "" if value is None else str(value)
    figure = name.rpartition(":")[2]  # after the name of a peer
    unit = next((unit for pattern, unit in _UNITS if pattern.search(figure)), "")
    if unit in _SCALED:
        size, prefix = next((each for each in _PREFIXES if abs(value) >= each[0]), (1, ""))
        value, unit = value / size, f"{prefix}{unit}"
    text = str(value) if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
    return f"{text} {unit}".rstrip()


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    columns = {name: value for name, value in result.items() if name != "peers"}
    for peer in result.get("peers", ()):
        columns |= {f"{peer['peer']}:{name}": peer[name] for name in _PEER_FIGURES}
    return columns
