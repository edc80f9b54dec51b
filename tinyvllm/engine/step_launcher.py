"""Carrying out a schedule: slots, blocks, the arrays of the step, the model, and the columns after it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Int32
from tinyvllm.engine.build_batch import build_batch
from tinyvllm.engine.completion import Completion
from tinyvllm.engine.request_state import RequestState
from tinyvllm.engine.sampling_columns import SamplingColumns
from tinyvllm.engine.sequence_table import SequenceTable, State, unseen_token
from tinyvllm.engine.stats import Counts
from tinyvllm.engine.validate import CheckedSchedule
from tinyvllm.sequence import SequenceTokens
from tinyvllm.step import Pending, PromptLogprobs, Runner, Started, Step, TableUpdates

_NO_ROWS = np.zeros(0, np.int32)
_NO_UPDATES = TableUpdates(_NO_ROWS, _NO_ROWS, _NO_ROWS)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that was launched and not yet read back.

    Attributes:
        rows: ``[S]``, rows that get a new token.
        arrivals: ``[S]``, what the column ``arrival`` held for them: a row with another arrival now is another's.
        completions: of those rows.
        computed: completions of all rows that the step computes.
        prompt_states: whose prompt log-probabilities come with the step, in order of the result's.
        pending: what the model and the sampler give.
        known: ``[S]``, tokens of each sequence once this step is read back.
        are_last: ``[S]``, whether a sequence can take no more tokens then; None: none is at its end.
        is_stored: whether its tokens are in the store already.
    """

    rows: Int32
    arrivals: NDArray[np.int64]
    completions: Sequence[Completion]
    computed: Sequence[Completion]
    prompt_states: Sequence[RequestState]
    pending: Pending
    known: Int32
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
        self._forking: dict[int, RequestState] = {}  # by row of the first completion, whose prompt the others wait for
        self._prompt_rows: set[int] = set()  # rows that owe log-probabilities of their prompt
        self._last: tuple[Int32, list[Completion], list[SequenceTokens]] = (_NO_ROWS, [], [])
        self._last_slots: Int32 | None = None  # of all rows of the last step; None: the next one sends whole tables

    def enter(self, state: RequestState) -> None:
        """Know the completions of a request that have not ended; they have their rows."""
        first = state.completions[0]
        live = [completion for completion in state.completions if not completion.is_finished]
        self._completions.update({completion.row: completion for completion in live})
        if any(self._table.state[completion.row] == State.HELD for completion in live):
            self._forking[first.row] = state
        if state.request.params.prompt_logprobs is not None and not first.is_finished:
            self._prompt_rows.add(first.row)

    def leave(self, completion: Completion) -> None:
        """Forget a completion that has ended; its row is about to be free.

        If it was the first and its siblings have not begun from its prompt, they begin on their own.
        """
        del self._completions[completion.row]
        self._prompt_rows.discard(completion.row)
        forking = self._forking.pop(completion.row, None)
        if forking is not None:
            for sibling in forking.completions[1:]:
                if not sibling.is_finished:
                    self._table.wait(sibling.row)

    def rebuild(self, states: Iterable[RequestState]) -> None:
        """Forget everything but these requests, and what was sent to the device before."""
        self._completions, self._forking, self._prompt_rows = {}, {}, set()
        for state in states:
            self.enter(state)
        self._last, self._last_slots = (_NO_ROWS, [], []), None

    def completions_of(self, schedule: CheckedSchedule) -> list[Completion]:
        """The completions that a schedule computes or preempts."""
        rows = [*schedule.rows.tolist(), *schedule.preempt.tolist()]
        return [self._completions[row] for row in rows if row in self._completions]

    def preempt(self, rows: Int32) -> None:
        """Take slots and blocks from these rows; they wait again, with their tokens."""
        for row in rows.tolist():
            self._counts.preemptions += int(self._table.num_computed[row] > 0)
            self._completions[row].tokens.move_out()
            self._table.preempt(row)

    def launch(self, schedule: CheckedSchedule) -> InFlight:
        """Carry out a step that computes something; its rows to be preempted already are."""
        table, started = self._table, None
        if not schedule.are_running:
            started = self._start(schedule.rows)
            schedule = schedule.in_order(table.slot.take(schedule.rows).argsort())
        slots = table.slot.take(schedule.rows)
        updates = self._extend(schedule, slots)
        batch = build_batch(table, self._tokens_of, schedule, slots)
        sampled = np.flatnonzero(batch.context_lens == schedule.known)
        rows, sampled_slots = schedule.rows.take(sampled), slots.take(sampled)
        completions, tokens = self._looked_up(rows)
        sampling = self._sampling.gather(sampled_slots, schedule.known.take(sampled)) if len(rows) else None
        prompts = self._prompts(schedule, batch.cu_seqlens_q) if self._prompt_rows else []
        step = Step(
            batch, sampled, sampled_slots, sampling, tokens, started, updates, [wanted for _, wanted in prompts]
        )
        self._last_slots = None  # until the device has it
        began = time.perf_counter()
        pending = self._runner.launch(step)
        self._counts.launch_s += time.perf_counter() - began
        self._counts.steps += 1
        self._last_slots = slots
        table.num_computed[schedule.rows] = batch.context_lens
        computed = completions if len(rows) == len(slots) else self.completions_of(schedule)
        in_flight = self._advance(rows, sampled_slots, completions, computed, [state for state, _ in prompts], pending)
        if self._forking:
            for row in rows.tolist():
                self._fork(row)
        return in_flight

    def _start(self, rows: Int32) -> Started | None:
        """Gives slots to those of the rows that have none; who that was."""
        table = self._table
        started: list[SequenceTokens] = []
        slots: list[int] = []
        for row, held in zip(rows.tolist(), table.slot.take(rows).tolist(), strict=True):
            if held >= 0:
                continue
            self._last, self._last_slots = (_NO_ROWS, [], []), None  # the row or the slot may have changed hands
            table.start(row)
            completion, slot = self._completions[row], int(table.slot[row])
            tokens = completion.tokens
            tokens.move_to(table.token_store[slot], table.num_stored[slot : slot + 1])
            self._sampling.set(slot, tokens.params, completion.request.seed, completion.index)
            completion.request.scheduled()
            started.append(tokens)
            slots.append(slot)
        if not started:
            return None
        array = np.array(slots, np.int32)
        return Started(array, self._sampling.gather(array, np.zeros(len(array), np.int32)), started)

    def _extend(self, schedule: CheckedSchedule, slots: Int32) -> TableUpdates | None:
        """Hands out the blocks that the rows lack; what is new in the block tables, if the rest is the last step's."""
        is_same = self._last_slots is not None and np.array_equal(slots, self._last_slots)
        lacking = schedule.needed.nonzero()[0]
        if len(lacking) == 0:
            return _NO_UPDATES if is_same else None
        rows, needed = schedule.rows.take(lacking), schedule.needed.take(lacking)
        updates = None
        if int(np.maximum.reduce(needed)) == 1:
            columns, blocks = self._table.extend_by_one(rows)
            updates = TableUpdates(lacking.astype(np.int32), columns, blocks) if is_same else None
        else:
            self._table.extend(rows, needed)
        blocks_used = self._table.blocks.num_blocks - self._table.blocks.num_free
        self._counts.peak_blocks = max(self._counts.peak_blocks, blocks_used)
        return updates

    def _looked_up(self, rows: Int32) -> tuple[list[Completion], list[SequenceTokens]]:
        """The completions of some rows and their tokens; mostly those of the step before."""
        last_rows, completions, tokens = self._last
        if rows is not last_rows and not np.array_equal(rows, last_rows):
            completions = [self._completions[row] for row in rows.tolist()]
            tokens = [completion.tokens for completion in completions]
            self._last = (rows, completions, tokens)
        return completions, tokens

    def _prompts(self, schedule: CheckedSchedule, cu_seqlens_q: Int32) -> list[tuple[RequestState, PromptLogprobs]]:
        """The prompt log-probabilities that this step can give; those of a prompt that is recomputed come once."""
        prompts = []
        for b in np.flatnonzero(np.isin(schedule.rows, list(self._prompt_rows))).tolist():
            state, start = self._completions[int(schedule.rows[b])].request, int(schedule.starts[b])
            first = max(start, state.num_prompt_logprobs)
            targets = state.prompt_after(first, start + int(schedule.num_tokens[b]))
            if len(targets):
                state.num_prompt_logprobs = first + len(targets)
                wanted = PromptLogprobs(int(cu_seqlens_q[b]) + first - start, targets, state.prompt_width)
                prompts.append((state, wanted))
        return prompts

    def _advance(
        self,
        rows: Int32,
        slots: Int32,
        completions: Sequence[Completion],
        computed: Sequence[Completion],
        prompt_states: Sequence[RequestState],
        pending: Pending,
    ) -> InFlight:
        """The columns of the rows that were sampled, after a launch: what will be known once it is read back."""
        table = self._table
        arrivals = table.arrival.take(rows)
        if len(rows) == 0:
            return InFlight(rows, arrivals, completions, computed, prompt_states, pending, rows, None, is_stored=True)
        known = table.num_tokens.take(rows) + 1
        table.num_in_flight[rows] += 1  # first: what is interrupted here counts too few tokens, never too many
        table.num_tokens[rows] = known
        reach_last: NDArray[np.bool_] = known >= table.max_tokens.take(rows)
        are_last = reach_last if np.count_nonzero(reach_last) else None
        if are_last is not None:
            table.running_changed()
        sampled = pending.wait().sampled if pending.is_done else None
        if sampled is None:
            table.last_token[rows] = unseen_token(slots)
        else:
            table.store(rows, sampled.token_ids, known)
            table.last_token[rows] = sampled.token_ids  # in flight, but known
        is_stored = sampled is not None
        return InFlight(rows, arrivals, completions, computed, prompt_states, pending, known, are_last, is_stored)

    def _fork(self, row: int) -> None:
        """Let the siblings of the completion in ``row`` begin, now that the prompt they share is computed."""
        state = self._forking.pop(row, None)
        if state is None:
            return
        for completion in state.completions[1:]:
            if not completion.is_finished:
                # At least one token is left to compute, for the logits; the last, partly filled block is not shared.
                self._table.share_prompt(row, completion.row, completion.tokens.num_prompt_tokens - 1)
                self._table.wait(completion.row)

    def _tokens_of(self, row: int) -> SequenceTokens:
        return self._completions[row].tokens
