"""What a scheduler decided, checked before anything is carried out: a bad scheduler is named, never obeyed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinyvllm.batch import Int32
from tinyvllm.engine.table import SequenceTable, State
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Schedule


def validated(decision: Schedule | Mapping[str, int], table: SequenceTable, scheduler: str) -> Schedule:
    """The decision as arrays, rows in order of slots, where every rule holds.

    Args:
        decision: what the plugin returned.
        table: as the plugin saw it.
        scheduler: its name, for messages.
    Raises:
        PluginError: naming the scheduler, the rule it broke and the numbers. Nothing has changed.
    """
    if isinstance(decision, Mapping):
        decision = _from_mapping(decision, table, scheduler)
    if not isinstance(decision, Schedule):
        raise _broken(scheduler, f"returned {type(decision).__name__}, expected a Schedule or a mapping")
    rows = _row_indices(decision.rows, table, scheduler, "rows")
    preempt = _row_indices(decision.preempt, table, scheduler, "preempt")
    num_tokens = np.asarray(decision.num_tokens)
    if num_tokens.shape != rows.shape or num_tokens.dtype.kind not in "iu":
        raise _broken(
            scheduler, f"num_tokens is {num_tokens.dtype} {list(num_tokens.shape)}, expected int {list(rows.shape)}"
        )
    num_tokens = num_tokens.astype(np.int32, copy=False)
    if len(preempt):
        _check_preempted(rows, preempt, table, scheduler)
    if len(rows):
        _check_tokens(rows, num_tokens, table, scheduler)
        _check_room(rows, num_tokens, preempt, table, scheduler)
    return Schedule(rows, num_tokens, preempt)


def blocks_needed(table: SequenceTable, rows: Int32, num_tokens: Int32) -> Int32:
    """``[n]`` blocks that each row lacks to compute so many more tokens."""
    computed = table.num_computed[rows] + num_tokens
    needed: Int32 = np.maximum(-(-computed // np.int32(table.block_size)) - table.num_blocks[rows], 0)
    return needed


def _from_mapping(decision: Mapping[str, int], table: SequenceTable, scheduler: str) -> Schedule:
    """Every schedulable row of a named request gets the tokens named, or what it has left if that is less."""
    candidates = np.concatenate([table.running, table.waiting])
    by_request: dict[str, list[int]] = {}
    for row in candidates.tolist():
        by_request.setdefault(table.request_ids[row], []).append(row)
    unknown = [request_id for request_id in decision if request_id not in by_request]
    if unknown:
        raise _broken(scheduler, f"scheduled request {unknown[0]!r}, which is neither waiting nor running")
    rows = [row for request_id in decision for row in by_request[request_id]]
    wanted = np.array([decision[table.request_ids[row]] for row in rows], np.int32)
    index = np.array(rows, np.int32)
    return Schedule(index, np.minimum(wanted, table.num_tokens[index] - table.num_computed[index]))


def _row_indices(value: object, table: SequenceTable, scheduler: str, field: str) -> Int32:
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise _broken(scheduler, f"{field} is {array.dtype} {list(array.shape)}, expected int [n]")
    array = array.astype(np.int32, copy=False)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= len(table.state)):
        raise _broken(scheduler, f"{field} names row {int(array.max())}, which does not exist")
    if len(np.unique(array)) != len(array):
        raise _broken(scheduler, f"{field} names a row twice")
    return array


def _check_preempted(rows: Int32, preempt: Int32, table: SequenceTable, scheduler: str) -> None:
    states = table.state[preempt]
    if not np.all((states == State.RUNNING) | (states == State.WAITING)):
        raise _broken(scheduler, "preempts a row that is neither running nor waiting")
    both = np.intersect1d(rows, preempt)
    if len(both):
        raise _broken(scheduler, f"both schedules and preempts row {int(both[0])}")


def _check_tokens(rows: Int32, num_tokens: Int32, table: SequenceTable, scheduler: str) -> None:
    states = table.state[rows]
    schedulable = (states == State.RUNNING) | (states == State.WAITING)
    if not schedulable.all():
        raise _broken(scheduler, f"schedules row {int(rows[np.argmin(schedulable)])}, which is not waiting or running")
    left = table.num_tokens[rows] - table.num_computed[rows]
    left = np.where(table.num_tokens[rows] < table.most_tokens[rows], left, 0)
    wrong = (num_tokens < 1) | (num_tokens > left)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise _broken(scheduler, f"gives row {int(rows[i])} {int(num_tokens[i])} tokens, expected 1 to {int(left[i])}")
    if int(num_tokens.sum()) > table.budget:
        raise _broken(scheduler, f"schedules {int(num_tokens.sum())} tokens, the budget is {table.budget}")


def _check_room(rows: Int32, num_tokens: Int32, preempt: Int32, table: SequenceTable, scheduler: str) -> None:
    slots = int(np.count_nonzero(table.state[rows] == State.WAITING))
    free_slots = table.num_free_slots + int(np.count_nonzero(table.state[preempt] == State.RUNNING))
    if slots > free_slots:
        raise _broken(scheduler, f"starts {slots} sequences, {free_slots} slots are free")
    needed = int(blocks_needed(table, rows, num_tokens).sum())
    free = table.num_free_blocks + (table.blocks_freed_by(preempt) if len(preempt) else 0)
    if needed > free:
        raise _broken(scheduler, f"needs {needed} KV blocks, {free} are free")


def _broken(scheduler: str, what: str) -> PluginError:
    return PluginError(f"scheduler {scheduler!r} {what}; the step was not carried out")
