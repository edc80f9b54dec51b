"""What a scheduler decided, checked before anything is carried out: a bad scheduler is named, never obeyed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyvllm.engine.columns import State
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.engine.step_rows import StepRows
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Schedule
from tinyvllm.plugin_call import PluginName
from tinyvllm.shapes import Int32

_NONE = np.zeros(0, np.int32)
_LIVE = (State.WAITING, State.RUNNING)
_MAX_INT32 = np.iinfo(np.int32).max
_MAX_SHOWN = 200  # characters of a value in a message


@dataclass(slots=True, eq=False)
class CheckedSchedule:
    """A decision where every rule holds, with what the check had to look up.

    Attributes:
        rows: ``[B]``.
        num_tokens: ``[B]``, tokens that each computes.
        preempt: rows to be preempted first.
        num_needed_blocks: ``[B]``, blocks that each row lacks; None: no row lacks a block.
        is_decode: whether each row computes its newest token and no other.
        has_starts: whether some of the rows have no slot yet.
        kept: the rows of the last step with their columns, if this step has the same; None: it does not.
    """

    rows: Int32
    num_tokens: Int32
    preempt: Int32
    num_needed_blocks: Int32 | None
    is_decode: bool
    has_starts: bool = False
    kept: StepRows | None = None


def validated(
    decision: object, table: SequenceTable, scheduler: PluginName, kept: StepRows | None = None
) -> CheckedSchedule:
    """The decision, if every rule holds.

    Args:
        decision: what the plugin returned: a :class:`~tinyvllm.interfaces.Schedule`, or a mapping of request ids to
            numbers of tokens.
        table: as the plugin saw it.
        scheduler: the plugin, for messages.
        kept: rows that had the same slots, blocks and columns until now, and have one token each left to compute; what
            was checked of them is not checked again. None: there are none.
    Raises:
        PluginError: naming the scheduler, the rule it broke and the numbers. Nothing has changed.
    """
    if not isinstance(decision, Schedule) and isinstance(decision, Mapping):
        decision = _from_mapping(decision, table, scheduler)
    if not isinstance(decision, Schedule):
        raise _broken(scheduler, f"returned {_shown(decision)}, expected a Schedule or a mapping of request ids")
    if kept is not None and kept.is_as_requested(decision.rows):
        schedule = _same_again(decision, kept, table)
        if schedule is not None:
            return schedule
    rows = _integers(decision.rows, scheduler, "rows")
    num_tokens = _integers(decision.num_tokens, scheduler, "num_tokens")
    if len(num_tokens) != len(rows):
        raise _broken(scheduler, f"names {len(rows)} rows but {len(num_tokens)} num_tokens")
    preempt = _integers(decision.preempt, scheduler, "preempt")
    if len(preempt):
        _check_preempted(rows, preempt, table, scheduler)
    if len(rows) == 0:
        return CheckedSchedule(rows, num_tokens, preempt, None, is_decode=False)
    return _checked(rows, num_tokens, preempt, table, scheduler)


def _same_again(decision: Schedule, kept: StepRows, table: SequenceTable) -> CheckedSchedule | None:
    """The decision, if it gives one token to each of the rows that were kept; None: it must be checked in full."""
    num_tokens, preempt, num_rows = decision.num_tokens, decision.preempt, len(kept.rows)
    if (
        not isinstance(num_tokens, np.ndarray)
        or num_tokens.dtype != np.int32
        or num_tokens.shape != (num_rows,)
        or np.count_nonzero(num_tokens == 1) != num_rows
        or not isinstance(preempt, np.ndarray)
        or preempt.shape != (0,)
        or num_rows > table.budget
    ):
        return None
    is_full = kept.num_tokens > kept.blocks_in(table).capacity
    num_needed = np.count_nonzero(is_full)
    if num_needed > table.num_free_blocks:
        return None
    num_needed_blocks = is_full.astype(np.int32) if num_needed else None
    return CheckedSchedule(kept.rows, num_tokens, _NONE, num_needed_blocks, is_decode=True, kept=kept)


def _checked(
    rows: Int32, num_tokens: Int32, preempt: Int32, table: SequenceTable, scheduler: PluginName
) -> CheckedSchedule:
    _check_range(rows, table, scheduler, "rows")
    slots = table.slot.take(rows)
    has_starts = int(np.minimum.reduce(slots)) < 0
    if not has_starts:  # only running rows hold a slot, and no two the same
        is_named = np.zeros(table.max_num_seqs, bool)
        is_named[slots] = True
        if np.count_nonzero(is_named) != len(slots):
            raise _broken(scheduler, "rows names a row twice")
    else:
        _check_starts(rows, preempt, table, scheduler)
    starts, known = table.num_computed.take(rows), table.num_tokens.take(rows)
    left = known - starts
    _check_tokens(rows, num_tokens, left, known < table.max_tokens.take(rows), table, scheduler)
    needed: Int32 = -(-(starts + num_tokens) // table.block_size) - table.num_blocks.take(rows)
    np.maximum(needed, 0, out=needed)
    num_needed = int(np.add.reduce(needed))
    if num_needed > table.num_free_blocks:
        free = table.num_free_blocks + (table.blocks_freed_by(preempt) if len(preempt) else 0)
        if num_needed > free:
            raise _broken(scheduler, f"needs {num_needed} KV blocks, {free} are free")
    is_decode = int(np.maximum.reduce(left)) == 1
    return CheckedSchedule(rows, num_tokens, preempt, needed if num_needed else None, is_decode, has_starts)


def _from_mapping(decision: Mapping[object, object], table: SequenceTable, scheduler: PluginName) -> Schedule:
    """Every schedulable row of a named request gets the tokens named, or what it has left if that is less."""
    by_request: dict[object, list[int]] = {}
    for row in np.concatenate([table.running, table.waiting]).tolist():
        by_request.setdefault(table.request_ids[row], []).append(row)
    rows: list[int] = []
    counts: list[int] = []
    for request_id, count in decision.items():
        if request_id not in by_request:
            raise _broken(scheduler, f"scheduled request {_shown(request_id)}, which is neither waiting nor running")
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 1 <= count <= _MAX_INT32:
            expected = f"a whole number of 1 to {_MAX_INT32}"
            raise _broken(scheduler, f"gives request {_shown(request_id)} {_shown(count)} tokens, expected {expected}")
        rows += by_request[request_id]
        counts += [int(count)] * len(by_request[request_id])
    index = np.array(rows, np.int32)
    left = table.num_tokens[index] - table.num_computed[index]
    return Schedule(index, np.minimum(np.array(counts, np.int32), left))


def _integers(value: object, scheduler: PluginName, field: str) -> Int32:
    """``[n]`` int32; no number wraps around and none is rounded."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        raise _broken(scheduler, f"{field} is {_shown(value)}, expected int32 of shape (n,)") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        got = f"{array.dtype} of shape {array.shape}" if array.ndim else _shown(value)
        raise _broken(scheduler, f"{field} is {got}, expected int32 of shape (n,)")
    if array.dtype != np.int32 and array.size and (array.min() < 0 or array.max() > _MAX_INT32):
        outside = next(each for each in array.tolist() if not 0 <= each <= _MAX_INT32)
        raise _broken(scheduler, f"{field} holds {outside}, expected 0 to {_MAX_INT32}")
    return array.astype(np.int32, copy=False)


def _check_range(rows: Int32, table: SequenceTable, scheduler: PluginName, field: str) -> None:
    lowest, highest = int(np.minimum.reduce(rows)), int(np.maximum.reduce(rows))
    if lowest < 0 or highest >= len(table.state):
        got = lowest if lowest < 0 else highest
        raise _broken(scheduler, f"{field} names row {got}, which does not exist; see view.running and view.waiting")


def _check_preempted(rows: Int32, preempt: Int32, table: SequenceTable, scheduler: PluginName) -> None:
    _check_range(preempt, table, scheduler, "preempt")
    if len(np.unique(preempt)) != len(preempt):
        raise _broken(scheduler, "preempt names a row twice")
    states = table.state[preempt]
    if not np.all((states == State.RUNNING) | (states == State.WAITING)):
        raise _broken(scheduler, "preempts a row that is neither running nor waiting")
    both = np.intersect1d(rows, preempt)
    if len(both):
        raise _broken(scheduler, f"both schedules and preempts row {int(both[0])}")


def _check_starts(rows: Int32, preempt: Int32, table: SequenceTable, scheduler: PluginName) -> None:
    """What must hold if some of the rows have no slot. Few rows start at once: lists are faster than arrays."""
    listed, states = rows.tolist(), table.state.take(rows).tolist()
    if len(set(listed)) != len(listed):
        raise _broken(scheduler, "rows names a row twice")
    num_starts = states.count(State.WAITING)
    if num_starts + states.count(State.RUNNING) != len(listed):
        row = next(row for row, state in zip(listed, states, strict=True) if state not in _LIVE)
        raise _broken(scheduler, f"schedules row {row}, which is not waiting or running")
    free = table.num_free_slots
    if len(preempt):
        free += int(np.count_nonzero(table.state[preempt] == State.RUNNING))
    if num_starts > free:
        raise _broken(scheduler, f"starts {num_starts} sequences, {free} slots are free")


def _check_tokens(
    rows: Int32, num_tokens: Int32, left: Int32, is_open: NDArray[np.bool_], table: SequenceTable, scheduler: PluginName
) -> None:
    if not is_open.all():
        row = int(rows[np.argmin(is_open)])
        raise _broken(scheduler, f"schedules row {row}, whose last token is in flight")
    if int(np.minimum.reduce(num_tokens)) < 1 or np.count_nonzero(num_tokens > left):
        i = int(np.argmax((num_tokens < 1) | (num_tokens > left)))
        raise _broken(scheduler, f"gives row {int(rows[i])} {int(num_tokens[i])} tokens, expected 1 to {int(left[i])}")
    total = int(num_tokens.sum(dtype=np.int64))
    if total > table.budget:
        raise _broken(scheduler, f"schedules {total} tokens, the budget is {table.budget}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _broken(scheduler: PluginName, what: str) -> PluginError:
    return PluginError(f"{scheduler}: schedule {what}; the step was not carried out")
