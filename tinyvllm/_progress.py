"""A progress bar with tokens per second and KV use on a terminal; nothing at all elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from tinyvllm._terminal import can_redraw
from tinyvllm.engine.engine import Engine

if TYPE_CHECKING:
    import rich.progress

_MIN_INTERVAL_S = 0.1


class Progress:
    """Shows how far an engine is with ``total`` requests, on standard error.

    Args:
        engine: whose counts are shown.
        total: requests in all.
        is_shown: False: never.
    """

    def __init__(self, engine: Engine, *, total: int, is_shown: bool = True) -> None:
        self._engine = engine
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._began = self._shown_at = time.perf_counter()
        self._tokens_before = engine.stats().num_generation_tokens
        if is_shown and can_redraw():
            self._open(total)

    def _open(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tokens_per_s]:.0f} tok/s  KV {task.fields[kv_use]:.0%}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,  # nothing remains
            # The bar writes to standard error, and what others write is none of its business: rich would send results
            # on standard output there as well.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("generating", total=total, tokens_per_s=0.0, kv_use=0.0)

    def update(self, num_finished: int) -> None:
        """Show the counts of now; cheap if called at every step."""
        if self._bar is None or self._task is None:
            return
        now = time.perf_counter()
        if now - self._shown_at < _MIN_INTERVAL_S:
            return
        self._shown_at = now
        stats = self._engine.stats()
        tokens_per_s = (stats.num_generation_tokens - self._tokens_before) / (now - self._began)
        kv_use = stats.num_blocks_used / stats.num_blocks
        self._bar.update(self._task, completed=num_finished, tokens_per_s=tokens_per_s, kv_use=kv_use)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
