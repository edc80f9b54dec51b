"""A scheduler's helper: which tokens of rows in a given order fit a step, its budget and the free blocks."""

from __future__ import annotations

import numpy as np

from tinyvllm.interfaces import Schedule, SchedulerView
from tinyvllm.shapes import Int32

_NONE = np.zeros(0, np.int32)


def pack(view: SchedulerView, running: Int32, waiting: Int32) -> Schedule:
    """A step: running rows first, then waiting ones in their order while slots, budget and blocks last.

    Running rows with one token left to compute come before long prompts, so decodes go on beside a prompt's
    chunks. Where blocks run out the newest rows are preempted, and then nothing new is started.
    """
    if len(running) == 0:
        return _starting(view, waiting)
    num_tokens = _left(view, running)
    are_decodes = len(running) <= view.budget and int(np.maximum.reduce(num_tokens)) <= 1
    has_starts = len(waiting) > 0 and view.num_free_slots > 0
    if are_decodes and not has_starts and len(running) <= view.num_free_blocks:
        return Schedule(running, num_tokens, _NONE)  # a decode needs at most one block
    if not are_decodes:
        running = running[np.argsort(num_tokens > 1, kind="stable")]
        num_tokens = _under_budget(view, running, view.budget)
        running = running[: len(num_tokens)]
    needed = blocks_needed(view, running, num_tokens)
    num_needed = int(needed.sum())
    if num_needed > view.num_free_blocks:
        return _preempting(view, running, num_tokens, needed)
    if not has_starts:
        return Schedule(running, num_tokens)
    started = _startable(view, waiting, view.budget - int(num_tokens.sum()), view.num_free_blocks - num_needed)
    if len(started.rows) == 0:  # blocks are short, and decodes only take more of them
        return Schedule(running, num_tokens)
    return Schedule(np.concatenate([running, started.rows]), np.concatenate([num_tokens, started.num_tokens]))


def _starting(view: SchedulerView, waiting: Int32) -> Schedule:
    """A step of waiting rows, where no row runs."""
    if len(waiting) == 0 or view.num_free_slots == 0:
        return Schedule(_NONE, _NONE)
    started = _startable(view, waiting, view.budget, view.num_free_blocks)
    return started if len(started.rows) else _make_room(view, waiting)


def blocks_needed(view: SchedulerView, rows: Int32, num_tokens: Int32) -> Int32:
    """``[n]`` blocks that each row lacks to compute so many more tokens."""
    computed = view.num_computed.take(rows) + num_tokens
    needed: Int32 = np.maximum(-(-computed // view.block_size) - view.num_blocks.take(rows), 0)
    return needed


def _left(view: SchedulerView, rows: Int32) -> Int32:
    """``[n]`` tokens that are known but not computed."""
    left: Int32 = view.num_tokens.take(rows) - view.num_computed.take(rows)
    return left


def _under_budget(view: SchedulerView, rows: Int32, budget: int) -> Int32:
    """Tokens of each row, all it has left while the budget lasts; rows beyond the budget are cut off."""
    left = _left(view, rows)
    before = np.cumsum(left) - left
    num_rows = int(np.searchsorted(before, budget))
    num_tokens: Int32 = np.minimum(left[:num_rows], budget - before[:num_rows]).astype(np.int32)
    return num_tokens


def _preempting(view: SchedulerView, rows: Int32, num_tokens: Int32, needed: Int32) -> Schedule:
    """Give up the newest holders of blocks, one at a time, until the rest fit; the oldest is never given up."""
    holders = np.concatenate([view.running, view.waiting])
    holders = holders[view.num_blocks[holders] > 0]
    newest_first = holders[np.argsort(-view.arrival[holders])]
    num_victims, free = 0, view.num_free_blocks
    keep = np.ones(len(rows), bool)
    while int(needed[keep].sum()) > free and num_victims < len(newest_first) - 1:
        keep &= rows != newest_first[num_victims]
        num_victims += 1
        free = view.num_free_blocks + view.blocks_freed_by(newest_first[:num_victims])
    keep &= np.cumsum(np.where(keep, needed, 0)) <= free
    return Schedule(rows[keep], num_tokens[keep], newest_first[:num_victims])


def _startable(view: SchedulerView, waiting: Int32, budget: int, free: int) -> Schedule:
    """Waiting rows that can begin now, in order, up to the first that cannot."""
    waiting = waiting[: view.num_free_slots]
    columns = [column.take(waiting).tolist() for column in (view.num_tokens, view.num_computed, view.num_blocks)]
    num_tokens: list[int] = []
    for known, computed, held in zip(*columns, strict=True):  # mostly one or two: arrays would take longer
        count = min(known - computed, budget)
        needed = max(-(-(computed + count) // view.block_size) - held, 0)
        if count == 0 or needed > free:
            break
        budget, free = budget - count, free - needed
        num_tokens.append(count)
    return Schedule(waiting[: len(num_tokens)], np.array(num_tokens, np.int32))


def _make_room(view: SchedulerView, waiting: Int32) -> Schedule:
    """Nothing runs and the first in the queue does not fit: take blocks from the others that wait, newest first."""
    holders = waiting[1:][view.num_blocks[waiting[1:]] > 0]
    return Schedule(_NONE, _NONE, holders[np.argsort(-view.arrival[holders])])
