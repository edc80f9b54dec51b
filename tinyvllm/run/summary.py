"""The short table that a run ends with."""

from __future__ import annotations

import sys
import time
from array import array
from statistics import median

from rich.markup import escape
from rich.table import Table

from tinyvllm.engine.engine import Engine
from tinyvllm.run.console import Console
from tinyvllm.run.feed import Result


class Summary:
    """Counts of one run, taken while it goes on. Time runs from the moment that this is made.

    Args:
        engine: whose counts are read; what it did before does not count.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = engine.stats()
        self._began = time.perf_counter()
        self._ttft_s = array("d")
        self._num_served = self._num_errors = 0
        self._notes: list[str] = []

    @property
    def num_results(self) -> int:
        """Results counted so far, errors included."""
        return self._num_served + self._num_errors

    def add(self, result: Result) -> None:
        """Count one result."""
        if result.output is None:
            self._num_errors += 1
            return
        self._num_served += 1
        metrics = result.output.metrics
        if metrics is not None and metrics.ttft_s is not None:
            self._ttft_s.append(metrics.ttft_s)

    def note(self, text: str) -> None:
        """A line to print below the table."""
        self._notes.append(text)

    def rows(self) -> list[tuple[str, str]]:
        """What the table shows: name and value."""
        stats, seconds = self._engine.stats(), time.perf_counter() - self._began
        generated = stats.num_generation_tokens - self._before.num_generation_tokens
        failed = f", {self._num_errors} failed" if self._num_errors else ""
        rows = [
            ("requests", f"{self._num_served}{failed}"),
            ("prompt tokens", f"{stats.num_prompt_tokens - self._before.num_prompt_tokens}"),
            ("generated tokens", f"{generated}"),
            ("time to first token", self._ttft()),
            ("tokens/s", f"{generated / seconds:.1f}"),
            ("KV blocks used", f"{stats.peak_blocks_used} of {stats.num_blocks}"),
            ("steps", f"{stats.num_steps - self._before.num_steps}"),
            ("seconds", f"{seconds:.2f}"),
        ]
        preemptions = stats.num_preemptions - self._before.num_preemptions
        return [*rows, ("preemptions", f"{preemptions}")] if preemptions else rows

    def print(self, *, to_stderr: bool = False) -> None:
        """Print the table and the notes."""
        table = Table(show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for row in self.rows():
            table.add_row(*map(escape, row))
        console = Console(file=sys.stderr if to_stderr else sys.stdout, highlight=False)
        console.print(table)
        for text in self._notes:
            console.print(text, markup=False, soft_wrap=True)

    def _ttft(self) -> str:
        if not self._ttft_s:
            return "-"
        middle, worst = 1000 * median(self._ttft_s), 1000 * max(self._ttft_s)
        return f"{middle:.1f} ms" if len(self._ttft_s) == 1 else f"{middle:.1f} ms median, {worst:.1f} ms worst"
