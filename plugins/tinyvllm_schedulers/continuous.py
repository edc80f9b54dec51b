"""Continuous batching (Yu et al. 2022, Orca): every step takes whoever is there, first come first served."""

from __future__ import annotations

from tinyvllm.plugin import Plugin, PluginContext, Schedule, Scheduler, SchedulerView, hookimpl, pack


class ContinuousScheduler:
    """Sequences join and leave the batch at every step; long prompts go in chunks beside running decodes."""

    def __init__(self, context: PluginContext) -> None:
        """Nothing to keep: a decision needs only the view."""

    def schedule(self, view: SchedulerView) -> Schedule:
        """All running sequences, then as many waiting ones as slots, budget and blocks allow."""
        return pack(view, view.running, view.waiting)


@hookimpl
def register_schedulers() -> list[Plugin[Scheduler]]:
    """The plugin ``continuous``."""
    return [Plugin("continuous", ContinuousScheduler, description="continuous batching, first come first served")]
