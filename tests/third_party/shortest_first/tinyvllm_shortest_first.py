"""A scheduler for tinyvllm that begins with the shortest (or the longest) prompts."""

import numpy as np

from tinyvllm.plugin import Options, Plugin, PluginContext, Schedule, Scheduler, SchedulerView, hookimpl


class ShortestFirstOptions(Options):
    longest: bool = False


class ShortestFirst:
    def __init__(self, context: PluginContext) -> None:
        self._sign = -1 if context.options.longest else 1

    def schedule(self, view: SchedulerView) -> Schedule:
        by_length = np.argsort(self._sign * view.num_tokens[view.waiting], kind="stable")
        candidates = [*view.running.tolist(), *view.waiting[by_length][: view.num_free_slots].tolist()]
        rows, counts, budget, free = [], [], view.budget, view.num_free_blocks
        for row in candidates:
            computed = int(view.num_computed[row])
            count = min(int(view.num_tokens[row]) - computed, budget)
            blocks = max(0, -(-(computed + count) // view.block_size) - int(view.num_blocks[row]))
            if count > 0 and blocks <= free:
                rows.append(row)
                counts.append(count)
                budget, free = budget - count, free - blocks
        holders = [row for row in (*view.running.tolist(), *view.waiting.tolist()) if view.num_blocks[row]]
        victims = [] if rows or not holders else [max(holders, key=lambda row: int(view.arrival[row]))]
        return Schedule(np.array(rows, np.int32), np.array(counts, np.int32), np.array(victims, np.int32))


@hookimpl
def register_schedulers() -> list[Plugin[Scheduler]]:
    return [Plugin("shortest_first", ShortestFirst, ShortestFirstOptions, "shortest prompts first")]
