"""Carrying out a schedule: slots, blocks, the arrays of the step, the model, and the columns after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Int32
from tinyvllm.engine.build_batch import build_batch
from tinyvllm.engine.completion import Completion, RequestState
from tinyvllm.engine.runner import Pending, PromptLogprobs, Runner, Started, Step
from tinyvllm.engine.sampling_columns import SamplingColumns
from tinyvllm.engine.standing import StandingRun
from tinyvllm.engine.stats import Counts
from tinyvllm.engine.table import SequenceTable
from tinyvllm.engine.validate import CheckedSchedule
from tinyvllm.sequence import SequenceTokens

_NO_ROWS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that was launched and not yet read back.

    Attributes:
        rows: ``[S]``, rows that get a new token.
        completions: of those.
        wishes: whose prompt log-probabilities come with it, in order of the result's.
        pending: what the model and the sampler give.
        known: ``[S]``, tokens of each sequence once this step is read back.
        are_last: ``[S]``, whether a sequence can take no more tokens then; None: none is at its end.
        is_stored: whether its tokens are in the store already.
        run: the decision that it belongs to, if that stands.
    """

    rows: Int32
    completions: Sequence[Completion]
    wishes: Sequence[RequestState]
    pending: Pending
    known: Int32
    are_last: NDArray[np.bool_] | None
    is_stored: bool
    run: StandingRun | None = None


class StepLauncher:
    """Turns schedules into steps.

    Args:
        table: changed as steps are carried out.
        runner: computes them.
        completions: by row; the engine's own, looked up here.
        counts: the engine's own.
    """

    def __init__(
        self, table: SequenceTable, runner: Runner, completions: dict[int, Completion], counts: Counts
    ) -> None:
        self._table = table
        self._runner = runner
        self._completions = completions
        self._counts = counts
        self._sampling = SamplingColumns(table.max_num_seqs)
        # Of step after step, so that nothing is made anew for the tokens that the host has not yet read; see Step.
        self._late_tokens = -1 - np.arange(table.max_num_seqs, dtype=np.int32)
        self._last: tuple[Int32, list[Completion], list[SequenceTokens]] = (_NO_ROWS, [], [])
        self.forking: set[str] = set()  # requests whose further completions wait for the prompt of the first
        self.telling_prompts: set[int] = set()  # rows that owe log-probabilities of their prompt

    def launch(self, schedule: CheckedSchedule) -> InFlight:
        """Carry out a step that computes something; its rows to be preempted already are."""
        table, started = self._table, None
        is_all = len(table.waiting) == 0 and len(schedule.rows) == len(table.running)
        if not schedule.are_running:
            started = self._start(schedule.rows)
            schedule = schedule.in_order(table.slot.take(schedule.rows).argsort())
        slots = table.slot.take(schedule.rows)
        self._extend(schedule)
        batch = build_batch(table, self._tokens_of, schedule, slots)
        sampled = np.flatnonzero(batch.context_lens == schedule.known)
        rows, sampled_slots = schedule.rows.take(sampled), slots.take(sampled)
        completions, tokens = self._looked_up(rows)
        sampling = self._sampling.gather(sampled_slots, schedule.known.take(sampled)) if len(rows) else None
        wishes = self._wishes(schedule, batch.cu_seqlens_q) if self.telling_prompts else []
        step = Step(batch, sampled, sampled_slots, sampling, tokens, started, None, [wish for _, wish in wishes])
        pending = self._begin(step)
        table.num_computed[schedule.rows] = batch.context_lens
        in_flight = self._advance(rows, completions, [state for state, _ in wishes], pending)
        if self.forking:
            for completion in completions:
                self._fork(completion)
        if sampling is None or not schedule.stands:
            return in_flight
        run = StandingRun(
            table, rows, slots, sampling=sampling, completions=completions, tokens=tokens, pending=pending,
            late_tokens=self._late_tokens[: len(rows)], follows=True, is_all=is_all,
        )  # fmt: skip
        return replace(in_flight, run=run)

    def launch_next(self, run: StandingRun) -> InFlight | None:
        """Carry out the next step of a decision, if it still stands, without the rows that have left."""
        going_on: StandingRun | None = run
        if run.leaving is not None:
            run.settle()
            going_on = self._without_leaving(run, run.leaving) if run.stands else None
        step = going_on.next_step() if going_on is not None else None
        if going_on is None or step is None:
            return None
        pending = self._begin(step)
        known, are_last, is_stored = going_on.launched(pending)
        self._note_peak()
        return InFlight(going_on.rows, going_on.completions, (), pending, known, are_last, is_stored, going_on)

    def _without_leaving(self, run: StandingRun, is_leaving: NDArray[np.bool_]) -> StandingRun | None:
        """The rest of a decision, if there is one."""
        staying = np.flatnonzero(~is_leaving)
        if len(staying) == 0:
            return None
        slots = run.slots.take(staying)
        sampling = self._sampling.gather(slots, slots)  # the run knows the positions
        rest = run.going_on(staying, slots, sampling, self._late_tokens[: len(slots)])
        self._last = (rest.rows, rest.completions, rest.tokens)
        return rest

    def _begin(self, step: Step) -> Pending:
        began = time.perf_counter()
        pending = self._runner.launch(step)
        self._counts.launch_s += time.perf_counter() - began
        self._counts.steps += 1
        return pending

    def _start(self, rows: Int32) -> Started | None:
        """Gives slots to those of the rows that have none; who that was."""
        table = self._table
        started: list[SequenceTokens] = []
        slots: list[int] = []
        for row, held in zip(rows.tolist(), table.slot.take(rows).tolist(), strict=True):
            if held >= 0:
                continue
            table.start(row)
            self._last = (_NO_ROWS, [], [])  # the row may have changed hands
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

    def _extend(self, schedule: CheckedSchedule) -> None:
        lacking = schedule.needed.nonzero()[0]
        if len(lacking):
            self._table.extend(schedule.rows.take(lacking), schedule.needed.take(lacking))
            self._note_peak()

    def _note_peak(self) -> None:
        blocks = self._table.blocks
        self._counts.peak_blocks = max(self._counts.peak_blocks, blocks.num_blocks - blocks.num_free)

    def _looked_up(self, rows: Int32) -> tuple[list[Completion], list[SequenceTokens]]:
        """The completions of some rows and their tokens; mostly those of the step before."""
        last_rows, completions, tokens = self._last
        if rows is not last_rows and not np.array_equal(rows, last_rows):
            completions = [self._completions[row] for row in rows.tolist()]
            tokens = [completion.tokens for completion in completions]
            self._last = (rows, completions, tokens)
        return completions, tokens

    def _wishes(self, schedule: CheckedSchedule, cu_seqlens_q: Int32) -> list[tuple[RequestState, PromptLogprobs]]:
        """What this step can tell of prompt log-probabilities not told yet; a recomputed prompt is not told twice."""
        wishes = []
        for b in np.flatnonzero(np.isin(schedule.rows, list(self.telling_prompts))).tolist():
            state, start = self._completions[int(schedule.rows[b])].request, int(schedule.starts[b])
            first = max(start, state.num_prompt_logprobs)
            targets = state.prompt_after(first, start + int(schedule.num_tokens[b]))
            if len(targets):
                state.num_prompt_logprobs = first + len(targets)
                wish = PromptLogprobs(int(cu_seqlens_q[b]) + first - start, targets, state.prompt_width)
                wishes.append((state, wish))
        return wishes

    def _advance(
        self, rows: Int32, completions: Sequence[Completion], wishes: Sequence[RequestState], pending: Pending
    ) -> InFlight:
        """The columns of the rows that were sampled, after a launch: what will be known once it is read back."""
        table = self._table
        if len(rows) == 0:
            return InFlight(rows, completions, wishes, pending, rows, None, is_stored=True)
        known = table.num_tokens.take(rows) + 1
        table.num_tokens[rows] = known
        table.num_in_flight[rows] += 1
        reach_most: NDArray[np.bool_] = known >= table.most_tokens.take(rows)
        are_last = reach_most if np.count_nonzero(reach_most) else None
        if are_last is not None:
            table.running_changed()
        sampled = pending.wait().sampled if pending.is_done else None
        if sampled is None:
            table.last_token[rows] = self._late_tokens[: len(rows)]
        else:
            table.store(rows, sampled.token_ids, known)
            table.last_token[rows] = sampled.token_ids  # in flight, but known
        return InFlight(rows, completions, wishes, pending, known, are_last, is_stored=sampled is not None)

    def _fork(self, first: Completion) -> None:
        """Let the siblings of a completion begin, now that the prompt they share is computed."""
        if first.request.request_id not in self.forking or first.index != 0:
            return
        self.forking.discard(first.request.request_id)
        for completion in first.request.completions[1:]:
            # At least one token is left to compute, for the logits; the last, partly filled block is not shared.
            self._table.share_prompt(first.row, completion.row, completion.tokens.num_prompt_tokens - 1)
            self._table.wait(completion.row)

    def _tokens_of(self, row: int) -> SequenceTokens:
        return self._completions[row].tokens
