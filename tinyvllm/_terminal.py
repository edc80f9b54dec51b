"""A line on standard error for the person who runs a program: what takes long now, or what is done without."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def announce(text: str) -> None:
    """Write the line if standard error is a terminal; nothing elsewhere, where nobody is waiting."""
    if is_terminal():
        warn(text)


def warn(text: str) -> None:
    """Write the line. Nothing happens if standard error is closed or cannot take it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # broken or full; closed; None
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def each_shown(what: str, items: Sequence[_Item]) -> Iterator[_Item]:
    """The items one by one, with a bar on standard error while they are worked on, if that is a terminal."""
    if not can_redraw():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar:
        yield from bar.track(items, description=what)


def is_terminal() -> bool:
    """Whether somebody may be looking at standard error."""
    try:
        return sys.stderr.isatty()
    except (ValueError, AttributeError):  # closed; None where a program has no standard error
        return False


def can_redraw() -> bool:
    """Whether standard error is a terminal that can move its cursor; another would keep every state of a bar."""
    return is_terminal() and os.environ.get("TERM") not in ("dumb", "unknown")
