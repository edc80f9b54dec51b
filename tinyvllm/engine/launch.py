"""Carrying out a schedule: slots, blocks, the arrays of the step, the model, and the columns after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyvllm.batch import Int32
from tinyvllm.engine.build_batch import build_batch
from tinyvllm.engine.completion import Completion, RequestState
from tinyvllm.engine.runner import PromptLogprobs, Runner, Step, StepResult
from tinyvllm.engine.sampling_columns import SamplingColumns
from tinyvllm.engine.stats import Counts
from tinyvllm.engine.table import SequenceTable, State
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
        result: what the model and the sampler gave.
    """

    rows: Int32
    completions: Sequence[Completion]
    wishes: Sequence[RequestState]
    result: StepResult


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
        self._last: tuple[Int32, list[Completion], list[SequenceTokens]] = (_NO_ROWS, [], [])
        self.forking: set[str] = set()  # requests whose further completions wait for the prompt of the first
        self.telling_prompts: set[int] = set()  # rows that owe log-probabilities of their prompt

    def launch(self, schedule: CheckedSchedule) -> InFlight:
        """Carry out a step that computes something; its rows to be preempted already are."""
        if not schedule.are_running:
            self._start(schedule.rows)
            schedule = schedule.in_order(self._table.slot.take(schedule.rows).argsort())
        self._extend(schedule)
        batch = build_batch(self._table, self._tokens_of, schedule)
        sampled = np.flatnonzero(batch.context_lens == schedule.known)
        rows = schedule.rows.take(sampled)
        completions, tokens = self._looked_up(rows)
        sampling = None
        if len(rows):
            sampling = self._sampling.gather(self._table.slot.take(rows), schedule.known.take(sampled))
        wishes = self._wishes(schedule, batch.cu_seqlens_q) if self.telling_prompts else []
        step = Step(batch, sampled, sampling, tokens, [wish for _, wish in wishes])
        began = time.perf_counter()
        result = self._runner.execute(step)
        self._counts.model_s += time.perf_counter() - began
        self._counts.steps += 1
        self._advance(schedule.rows, batch.context_lens, rows, result)
        if self.forking:
            for completion in completions:
                self._fork(completion)
        return InFlight(rows, completions, [state for state, _ in wishes], result)

    def _start(self, rows: Int32) -> None:
        table = self._table
        for row in rows[table.state[rows] == State.WAITING].tolist():
            table.start(row)
            self._last = (_NO_ROWS, [], [])  # the row may have changed hands
            completion = self._completions[row]
            params, seed = completion.tokens.params, completion.request.seed
            self._sampling.set(int(table.slot[row]), params, seed, completion.index)
            completion.request.scheduled()

    def _extend(self, schedule: CheckedSchedule) -> None:
        lacking = schedule.needed.nonzero()[0]
        if len(lacking):
            self._table.extend(schedule.rows.take(lacking), schedule.needed.take(lacking))
            blocks = self._table.blocks
            self._counts.peak_blocks = max(self._counts.peak_blocks, blocks.num_blocks - blocks.num_free)

    def _looked_up(self, rows: Int32) -> tuple[list[Completion], list[SequenceTokens]]:
        """The completions of some rows and their tokens; mostly those of the step before."""
        last_rows, completions, tokens = self._last
        if not np.array_equal(rows, last_rows):
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

    def _advance(self, rows: Int32, ends: Int32, sampled_rows: Int32, result: StepResult) -> None:
        """The columns after a launch: what is computed, and what will be known once it is read back."""
        table = self._table
        table.num_computed[rows] = ends
        if result.sampled is None:
            return
        known = table.num_tokens.take(sampled_rows) + 1
        table.num_tokens[sampled_rows] = known
        table.num_in_flight[sampled_rows] += 1
        table.last_token[sampled_rows] = result.sampled.token_ids
        if (known >= table.most_tokens.take(sampled_rows)).any():
            table.running_changed()

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
