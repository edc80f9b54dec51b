"""A line about what takes long now, so that nobody waits before a silent terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def announce(text: str) -> None:
    """Write the line to standard error if that is a terminal; nothing elsewhere, where nobody is waiting."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def each_shown(what: str, items: Sequence[_Item]) -> Iterator[_Item]:
    """The items one by one, with a bar on standard error while they are worked on, if that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, console=Console(stderr=True), transient=True)
