"""Carrying out a schedule: slots, blocks, the arrays of the step, the model, and the columns after it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyvllm.engine.build_batch import build_batch
from tinyvllm.engine.columns import State
from tinyvllm.engine.completion import Completion
from tinyvllm.engine.request_state import RequestState
from tinyvllm.engine.sampling_columns import SamplingColumns
from tinyvllm.engine.sequence_table import SequenceTable, unseen_token
from tinyvllm.engine.stats import Counts
from tinyvllm.engine.step_rows import StepRows
from tinyvllm.engine.validate import CheckedSchedule
from tinyvllm.sequence import SequenceTokens
from tinyvllm.shapes import Int32
from tinyvllm.step import Pending, PromptLogprobs, Runner, Started, StartedSequence, Step, TableUpdates

_NO_ROWS = np.zeros(0, np.int32)
_NO_UPDATES = TableUpdates(_NO_ROWS, _NO_ROWS, _NO_ROWS)


@dataclass(slots=True, eq=False)
class InFlight:
    """A step that was launched and not yet read back.

    Attributes:
        rows: the ``S`` rows that get a new token, for what does not change from step to step; None: no row gets one.
        num_before: ``[S]``, tokens of each sequence before this step.
        num_tokens: ``[S]``, tokens of each sequence once this step is read back.
        computed: completions of all rows that the step computes.
        prompt_states: whose prompt log-probabilities come with the step, in order of the result's.
        pending: what the model and the sampler give.
        are_last: ``[S]``, whether a sequence can take no more tokens then; None: none is at its end.
        is_stored: whether its tokens are in the store already.
    """

    rows: StepRows | None
    num_before: Int32
    num_tokens: Int32
    computed: Sequence[Completion]
    prompt_states: Sequence[RequestState]
    pending: Pending
    are_last: NDArray[np.bool_] | None
    is_stored: bool


class StepLauncher:
    """Turns schedules into steps.

    Args:
        table: changed as steps are carried out.
        runner: computes them.
        counts: the engine's own.
    """

    def __init__(self, table: SequenceTable, runner: Runner, counts: Counts) -> None:
        self._table = table
        self._runner = runner
        self._counts = counts
        self._sampling = SamplingColumns(table.max_num_seqs)
        self._completions: dict[int, Completion] = {}  # by row
        self._tokens: dict[int, SequenceTokens] = {}  # of the completions, by row
        self._forking: dict[int, RequestState] = {}  # by row of the first completion; its siblings wait
        self._prompt_rows: set[int] = set()  # of requests for prompt log-probabilities
        self._last: StepRows | None = None  # of the last step, if each of its rows got a token
        self._last_slots: Int32 | None = None  # of all rows of the last step; None: the next one sends whole tables

    def add(self, state: RequestState) -> None:
        """Serve the completions of a request that have not ended; they have rows."""
        first = state.completions[0]
        live = [completion for completion in state.completions if not completion.is_finished]
        self._completions.update({completion.row: completion for completion in live})
        self._tokens.update({completion.row: completion.tokens for completion in live})
        if any(self._table.state[completion.row] == State.HELD for completion in live):
            self._forking[first.row] = state
        if state.request.params.prompt_logprobs is not None and not first.is_finished:
            self._prompt_rows.add(first.row)

    def remove(self, completion: Completion) -> None:
        """Forget a completion that has ended and still has its row.

        If it was the first of its request and has not computed the prompt, its siblings begin on their own.
        """
        del self._completions[completion.row], self._tokens[completion.row]
        self._prompt_rows.discard(completion.row)
        forking = self._forking.pop(completion.row, None)
        if forking is not None:
            for sibling in forking.completions[1:]:
                if not sibling.is_finished:
                    self._table.wait(sibling.row)

    def rebuild(self, states: Iterable[RequestState]) -> None:
        """Forget all but these requests, and what the last step was."""
        self._completions, self._tokens, self._forking, self._prompt_rows = {}, {}, {}, set()
        for state in states:
            self.add(state)
        self._last = self._last_slots = None

    @property
    def kept(self) -> StepRows | None:
        """The rows of the last step with their columns, if nothing has changed but that each has got a token."""
        last = self._last
        return last if last is not None and last.version == self._table.version else None

    def completions_of(self, schedule: CheckedSchedule) -> list[Completion]:
        """The completions that a schedule computes or preempts."""
        rows = [*schedule.rows.tolist(), *schedule.preempt.tolist()]
        return [self._completions[row] for row in rows if row in self._completions]

    def preempt(self, rows: Int32) -> None:
        """Take slots and blocks from these rows, which keep their tokens and wait again."""
        for row in rows.tolist():
            self._counts.preemptions += int(self._table.num_computed[row] > 0)
            self._completions[row].tokens.move_out()
            self._table.preempt(row)

    def launch(self, schedule: CheckedSchedule) -> InFlight:
        """Carry out a step that computes something; the rows in ``schedule.preempt`` were preempted before."""
        table, started, sampled = self._table, None, None
        rows, num_tokens, num_needed = schedule.kept, schedule.num_tokens, schedule.num_needed_blocks
        self._last = None
        if rows is None:
            started = self._start(schedule.rows) if schedule.has_starts else None
            order = table.slot.take(schedule.rows).argsort()
            rows = self._gather(schedule.rows, schedule.rows.take(order))
            num_tokens = num_tokens.take(order)
            num_needed = None if num_needed is None else num_needed.take(order)
        updates = self._extend(rows, num_needed)
        batch = build_batch(table, rows, num_tokens, is_decode=schedule.is_decode)
        if schedule.is_decode:
            places, offsets, sampled = table.places[: len(num_tokens)], table.zeros[: len(num_tokens)], rows
        else:
            places = np.flatnonzero(batch.context_lens == rows.num_tokens)
            offsets = num_tokens.take(places) - 1
            few = rows.rows.take(places)
            if len(few):
                sampled = rows if len(few) == len(num_tokens) else self._gather(few, few)
        sampling = None if sampled is None else self._sampling.gather(sampled.slots, sampled.num_tokens)
        prompts = self._prompts(rows, num_tokens, batch.cu_seqlens_q) if self._prompt_rows else []
        slots = _NO_ROWS if sampled is None else sampled.slots
        step = Step(batch, places, offsets, slots, sampling, started, updates, [each for _, each in prompts])
        self._last_slots = None  # until the device has it
        began = time.perf_counter()
        pending = self._runner.launch(step)
        self._counts.launch_s += time.perf_counter() - began
        self._counts.steps += 1
        self._last_slots = rows.slots
        table.num_computed[rows.rows] = batch.context_lens
        in_flight = self._advance(sampled, rows.completions, [state for state, _ in prompts], pending)
        if sampled is rows:
            rows.num_computed, rows.num_tokens = in_flight.num_before, in_flight.num_tokens
            self._last = rows
        if self._forking and sampled is not None:
            for row in sampled.rows.tolist():
                self._fork(row)
        return in_flight

    def _gather(self, requested: Int32, rows: Int32) -> StepRows:
        return StepRows.gather(self._table, requested, rows, self._completions, self._tokens)

    def _start(self, rows: Int32) -> Started:
        """Give slots to those of the rows that have none; what the runner must know of them."""
        table = self._table
        started: list[StartedSequence] = []
        slots: list[int] = []
        self._last_slots = None  # these slots may have been another sequence's in the last step
        for row in rows[table.slot.take(rows) < 0].tolist():
            table.start(row)
            completion, slot = self._completions[row], int(table.slot[row])
            tokens = completion.tokens
            tokens.move_to(table.token_store[slot], table.num_stored[slot : slot + 1])
            self._sampling.set(slot, tokens.params, completion.request.seed, completion.index)
            completion.request.scheduled()
            started.append(_as_started(tokens))
            slots.append(slot)
        array = np.array(slots, np.int32)
        return Started(array, self._sampling.gather(array, np.zeros(len(array), np.int32)), started)

    def _extend(self, rows: StepRows, num_needed: Int32 | None) -> TableUpdates | None:
        """Hand out the blocks that the rows lack.

        Returns:
            what is new in the block tables, if the last step had the same slots; None if it had others.
        """
        slots, last_slots = rows.slots, self._last_slots
        is_same = last_slots is not None and (slots is last_slots or np.array_equal(slots, last_slots))
        if is_same and last_slots is not None:
            rows.slots = last_slots  # the same array, so that nobody compares again
        if num_needed is None:
            return _NO_UPDATES if is_same else None
        lacking = num_needed.nonzero()[0]
        few, counts = rows.rows.take(lacking), num_needed.take(lacking)
        updates = None
        if int(np.maximum.reduce(counts)) == 1:
            columns, blocks = self._table.extend_by_one(few)
            updates = TableUpdates(lacking.astype(np.int32), columns, blocks) if is_same else None
        else:
            self._table.extend(few, counts)
        rows.blocks = None
        blocks_used = self._table.blocks.num_blocks - self._table.blocks.num_free
        self._counts.peak_blocks = max(self._counts.peak_blocks, blocks_used)
        return updates

    def _prompts(
        self, rows: StepRows, num_tokens: Int32, cu_seqlens_q: Int32
    ) -> list[tuple[RequestState, PromptLogprobs]]:
        """The log-probabilities of prompt tokens that this step must give; a recomputed prompt gives none again."""
        prompts = []
        for b in np.flatnonzero(np.isin(rows.rows, list(self._prompt_rows))).tolist():
            state, start = rows.completions[b].request, int(rows.num_computed[b])
            first = max(start, state.num_prompt_logprobs)
            targets = state.prompt_after(first, start + int(num_tokens[b]))
            if len(targets):
                state.num_prompt_logprobs = first + len(targets)
                asked = PromptLogprobs(int(cu_seqlens_q[b]) + first - start, targets, state.prompt_width)
                prompts.append((state, asked))
        return prompts

    def _advance(
        self,
        sampled: StepRows | None,
        computed: Sequence[Completion],
        prompt_states: Sequence[RequestState],
        pending: Pending,
    ) -> InFlight:
        """The columns of the rows that were sampled, after a launch."""
        if sampled is None:
            return InFlight(None, _NO_ROWS, _NO_ROWS, computed, prompt_states, pending, None, is_stored=True)
        table, rows, num_before = self._table, sampled.rows, sampled.num_tokens
        num_tokens = num_before + 1
        table.num_tokens[rows] = num_tokens
        reach_last: NDArray[np.bool_] = num_tokens >= sampled.max_tokens
        are_last = reach_last if np.count_nonzero(reach_last) else None
        if are_last is not None:
            table.running_changed()
        result = pending.wait().sampled if pending.is_done else None
        if result is None:
            table.last_token[rows] = unseen_token(sampled.slots)
        else:
            table.store(sampled.slots, result.token_ids, num_before, num_tokens)
            table.last_token[rows] = result.token_ids
        is_stored = result is not None
        return InFlight(sampled, num_before, num_tokens, computed, prompt_states, pending, are_last, is_stored)

    def _fork(self, row: int) -> None:
        """Let the siblings of the completion in ``row`` begin; it has computed the prompt that they share."""
        state = self._forking.pop(row, None)
        if state is None:
            return
        for completion in state.completions[1:]:
            if not completion.is_finished:
                # At least one token is left to compute, for the logits; the last, partly filled block is not shared.
                self._table.share_prompt(row, completion.row, completion.tokens.num_prompt_tokens - 1)
                self._table.wait(completion.row)


def _as_started(tokens: SequenceTokens) -> StartedSequence:
    """A sequence as it is now: the token store, where its tokens lie, is written in later steps."""
    token_ids = tokens.all.copy()
    token_ids.flags.writeable = False
    return StartedSequence(tokens.params, tokens.rules, token_ids, tokens.num_prompt_tokens)
