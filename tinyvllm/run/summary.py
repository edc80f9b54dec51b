"""The short table that a run ends with."""

from __future__ import annotations

import contextlib
import sys
import time
from array import array
from collections.abc import Iterator
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
        self._num_served = self.num_errors = 0
        self._num_cut_short: dict[int, int] = {}  # by max_tokens
        self._notes: list[str] = []

    @property
    def num_results(self) -> int:
        """Results counted so far, errors included."""
        return self._num_served + self.num_errors

    def add(self, result: Result) -> None:
        """Count one result."""
        if result.output is None:
            self.num_errors += 1
            return
        self._num_served += 1
        limit = result.job.params.max_tokens if result.job.params is not None else None
        if limit is not None:
            num_cut = sum(
                len(each.token_ids) == limit for each in result.output.outputs if each.finish_reason == "length"
            )
            self._num_cut_short[limit] = self._num_cut_short.get(limit, 0) + num_cut
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
        failed = f", {self.num_errors} failed" if self.num_errors else ""
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

    def print(self) -> None:
        """Print the table and the notes on standard error, if that can be written."""
        table = Table(show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for row in self.rows():
            table.add_row(*map(escape, row))
        console = Console(file=sys.stderr, highlight=False)
        with contextlib.suppress(OSError):  # a standard error that is full or broken takes nothing from the results
            console.print(table)
            for text in [*self._notes, *self._cut_short()]:
                console.print(text, markup=False, soft_wrap=True)

    def _cut_short(self) -> Iterator[str]:
        for limit, number in sorted(self._num_cut_short.items()):
            if number:
                texts = "1 text" if number == 1 else f"{number} texts"
                yield f"{texts} ended at max_tokens = {limit}; --max-tokens N allows more"

    def _ttft(self) -> str:
        if not self._ttft_s:
            return "-"
        middle, worst = 1000 * median(self._ttft_s), 1000 * max(self._ttft_s)
        return f"{middle:.1f} ms" if len(self._ttft_s) == 1 else f"{middle:.1f} ms median, {worst:.1f} ms worst"
