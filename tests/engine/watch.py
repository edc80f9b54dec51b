"""Sees whom an engine serves, from the place of its scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tests.engine.faults import Faults
from tinyvllm.interfaces import Schedule, Scheduler, SchedulerView


@dataclass
class Watch:
    """Whom a call of the engine has had in its hands.

    Attributes:
        asked: requests that wait or run, at the last call of the scheduler.
        decided: requests of the last decision.
        touched: of decisions made, and of steps waited for, since somebody cleared it.
    """

    asked: set[str] = field(default_factory=set)
    decided: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)


class WatchedScheduler:
    """Passes a scheduler's decisions on, or fails; so many times it preempts a row that the decision would compute."""

    def __init__(self, inner: Scheduler, faults: Faults, watch: Watch, num_preemptions: int) -> None:
        self._inner, self._faults, self._watch = inner, faults, watch
        self._num_preemptions, self._num_calls = num_preemptions, 0

    def schedule(self, view: SchedulerView) -> Schedule | Mapping[str, int]:
        self._watch.asked = {view.request_id(row) for row in [*view.waiting.tolist(), *view.running.tolist()]}
        self._faults.pass_through("schedule")
        decision = self._inner.schedule(view)
        if isinstance(decision, Schedule):
            self._num_calls += 1
            if self._num_preemptions and self._num_calls % 4 == 0:
                self._num_preemptions -= 1
                decision = _with_preemption(decision, view)
            rows = [*np.asarray(decision.rows).tolist(), *np.asarray(decision.preempt).tolist()]
            self._watch.decided = {view.request_id(row) for row in rows}
            self._watch.touched |= self._watch.decided
        return decision


def _with_preemption(decision: Schedule, view: SchedulerView) -> Schedule:
    is_preempted = np.isin(decision.rows, view.running[-1:])
    preempt = np.concatenate([decision.preempt, decision.rows[is_preempted]])
    return Schedule(decision.rows[~is_preempted], decision.num_tokens[~is_preempted], preempt)
