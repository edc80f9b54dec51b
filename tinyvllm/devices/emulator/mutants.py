"""Kernel sources with one synchronisation removed, to see whether the tests would notice.

A barrier that no check misses is either superfluous or unproven; both are worth knowing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SYNCHRONISATION = re.compile(
    r"(?<!:)\b(?:__syncthreads|__syncwarp|(?:cp_async|wgmma)_wait\s*<[^;{}]*>|mbarrier_wait|pdl_wait|grid_barrier|counter_wait)\s*\([^;{}]*\)\s*;"
)
"""The statements that order memory."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A source without one of its statements; ``line`` is where that statement was."""

    line: int
    statement: str
    text: str

    def write(self, folder: Path, name: str) -> Path:
        """The mutant as a file in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(self.text)
        return path


def mutants_of(source: Path, statement: re.Pattern[str] = SYNCHRONISATION) -> list[Mutant]:
    """One mutant for each place in ``source`` where ``statement`` matches, comments excepted."""
    text = source.read_text()
    code = re.sub(r"//[^\n]*", lambda comment: " " * len(comment[0]), text)
    return [
        Mutant(text.count("\n", 0, found.start()) + 1, found[0], f"{text[: found.start()]};{text[found.end() :]}")
        for found in statement.finditer(code)
    ]
