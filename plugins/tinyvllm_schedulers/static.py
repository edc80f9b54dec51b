"""Static batching: a batch is filled, runs until its last sequence ends, then the next."""

from __future__ import annotations

import numpy as np

from tinyvllm.plugin import Plugin, PluginContext, Schedule, Scheduler, SchedulerView, hookimpl, pack


class StaticScheduler:
    """The baseline that continuous batching is measured against: slots of finished sequences stay empty."""

    def __init__(self, context: PluginContext) -> None:
        """No batch yet."""
        self._last_arrival = -1  # the batch is whoever arrived no later than this

    def schedule(self, view: SchedulerView) -> Schedule:
        """The batch's own sequences; a new batch only when none of it is left."""
        members = self._members(view)
        if view.num_free_slots == view.max_num_seqs and len(members) == 0 and len(view.waiting):
            filled = view.waiting[: view.max_num_seqs]
            self._last_arrival = int(view.arrival[filled[-1]])
            members = filled
        return pack(view, view.running, members)

    def _members(self, view: SchedulerView) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """Waiting rows of the batch: not begun for want of budget, or preempted."""
        arrivals = view.arrival[view.waiting]  # ascending
        return view.waiting[: int(np.searchsorted(arrivals, self._last_arrival, side="right"))]


@hookimpl
def register_schedulers() -> list[Plugin[Scheduler]]:
    """The plugin ``static``."""
    return [Plugin("static", StaticScheduler, description="static batching: fill, run to the end, fill again")]
