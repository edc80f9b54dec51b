"""Every barrier and wait of every kernel: what it orders, and what notices when it is missing.

They are found in the sources, so that a new one is judged without being listed. Those that results cannot show, on an
emulator that runs one block after the other and interrupts no thread between a load and a store, are named here by what
their comment says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from tinyvllm.devices.compile_cache import INCLUDE_DIR
from tinyvllm.devices.emulator.mutants import Mutant, mutants_of

from .sources import all_sources, source_of

PRELUDE = INCLUDE_DIR / "tinyvllm"


class Shown(StrEnum):
    """What notices that a barrier is missing."""

    VALUES = "wrong results"
    RACE = "a race"
    NOTHING = "nothing"


BY_RACES_ALONE = {
    "publishes": "blocks run one after the other",
    "before thread 0 says so": "blocks run one after the other",
    "zero before anybody adds": "the threads of a block come to the wait together, the sums cleared",
    "forbidden tokens stay so": "no thread is interrupted between a load and a store",
}
"""Part of a comment, and why no result shows it."""

BY_NOTHING = {
    "still ends after its predecessor": "no kernel of the emulator ends before its predecessor",
    "by this thread's own wait": "the sums waited for x, which is the predecessor's",
    "with wgmma:": "the emulator takes the twin by mma_bf16",
    "have read the stage": "the product after the last read is one of the whole warp",
}
"""Part of a comment, and why neither results nor the race check show it."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """One statement; ``orders`` is what its comment says."""

    file: str
    mutant: Mutant
    orders: str

    @property
    def shown(self) -> Shown:
        """What notices that it is missing."""
        if (PRELUDE / self.file).exists():
            return Shown.VALUES  # by its samples, whose blocks run together
        if any(part in self.orders for part in BY_NOTHING):
            return Shown.NOTHING
        return Shown.RACE if any(part in self.orders for part in BY_RACES_ALONE) else Shown.VALUES

    @property
    def reason(self) -> str:
        """Why results do not show it; empty where they do."""
        if self.shown is Shown.VALUES:
            return ""
        parts = BY_RACES_ALONE | BY_NOTHING
        return next((why for part, why in parts.items() if part in self.orders), "")

    def __str__(self) -> str:
        return f"{self.file}:{self.mutant.line}"


def barriers_of(name: str) -> list[Barrier]:
    """Those of one file of the kernels or of the prelude."""
    path = PRELUDE / name if (PRELUDE / name).exists() else source_of(name)
    lines = path.read_text().splitlines()
    return [Barrier(name, mutant, _comment(lines, mutant.line - 1)) for mutant in mutants_of(path)]


def all_files() -> list[str]:
    """Every file that has one."""
    paths = [*all_sources(), *PRELUDE.glob("*.cuh")]
    return sorted(path.name for path in paths if mutants_of(path))


def rows() -> list[str]:
    """The lines of the documentation's table."""
    found = []
    for barrier in (barrier for name in all_files() for barrier in barriers_of(name)):
        noticed = f"{barrier.shown}: {barrier.reason}" if barrier.reason else str(barrier.shown)
        statement = barrier.mutant.statement.rstrip(";")
        found.append(f"| `{barrier.file}` | `{statement}` | {barrier.orders} | {noticed} |")
    return found


def _comment(lines: list[str], at: int) -> str:
    """The comment on the line, or the one above it; that of a wait for copies may stand between it and its barrier."""
    same_line = re.search(r"//\s*(.+)$", lines[at])
    if same_line:
        return same_line[1]
    above, below = _block(lines, at - 1, -1), _block(lines, at + 1, 1)
    return " ".join(above[::-1] or (below if "cp_async_wait" in lines[at] else []))


def _block(lines: list[str], at: int, step: int) -> list[str]:
    found = []
    while 0 <= at < len(lines) and (match := re.fullmatch(r"\s*//\s*(.+)", lines[at])):
        found.append(match[1])
        at += step
    return found
