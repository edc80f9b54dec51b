"""A line about what takes long now, so that nobody waits before a silent terminal."""

from __future__ import annotations

import sys


def announce(text: str) -> None:
    """Write the line to standard error if that is a terminal; nothing elsewhere, where nobody is waiting."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
