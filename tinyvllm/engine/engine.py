"""The loop: schedule, validate, compute, read back. One step at a time, one step ahead if asked.

``step`` launches the next step and then reads back the oldest one. With a lag of zero that is the same step; with a
lag of one the scheduler decides without the newest tokens, stop conditions are noticed one step late, and a
sequence that has ended costs at most one wasted step.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvllm.batch import Int32
from tinyvllm.engine.admission import Admission
from tinyvllm.engine.build_batch import build_batch
from tinyvllm.engine.completion import Completion, RequestState
from tinyvllm.engine.runner import ModelRunner, PromptLogprobs, Step, StepResult
from tinyvllm.engine.sampling_columns import SamplingColumns
from tinyvllm.engine.table import SequenceTable, State
from tinyvllm.engine.validate import blocks_needed, validated
from tinyvllm.engine.window import SchedulerWindow
from tinyvllm.errors import PluginError, RequestError
from tinyvllm.interfaces import Schedule, Scheduler
from tinyvllm.outputs import RequestOutput
from tinyvllm.request import SamplingParams
from tinyvllm.sequence import SequenceTokens


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the engine began, and what holds now.

    Attributes:
        num_running, num_waiting: sequences now.
        num_blocks_used, num_blocks, peak_blocks_used: KV blocks now, in all, and the most at any time.
        num_prompt_tokens: of requests that were taken.
        num_generation_tokens: read back and kept.
        num_steps: carried out.
        num_preemptions: sequences that lost their blocks and were computed again.
        model_s: seconds inside the model and the sampler.
        schedule_s: seconds in scheduling, batching and bookkeeping, text aside.
    """

    num_running: int
    num_waiting: int
    num_blocks_used: int
    num_blocks: int
    peak_blocks_used: int
    num_prompt_tokens: int
    num_generation_tokens: int
    num_steps: int
    num_preemptions: int
    model_s: float
    schedule_s: float


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step that was launched: rows that were sampled, what they belong to, and the answer."""

    rows: Int32
    completions: Sequence[Completion]
    wishes: Sequence[tuple[RequestState, PromptLogprobs]]
    result: StepResult


class Engine:
    """Requests in, tokens out.

    Args:
        table: columns, block tables and free lists.
        runner: carries out steps.
        scheduler: decides them.
        scheduler_name: for error messages.
        admission: turns prompts into requests, or refuses them.
        lag: 0, or 1 to decide a step before the one in flight was read back.
    """

    def __init__(
        self,
        *,
        table: SequenceTable,
        runner: ModelRunner,
        scheduler: Scheduler,
        scheduler_name: str,
        admission: Admission,
        lag: int = 0,
    ) -> None:
        self._table = table
        self._runner = runner
        self._scheduler = scheduler
        self._scheduler_name = scheduler_name
        self._admission = admission
        self._lag = lag
        self._window = SchedulerWindow(table)
        self._sampling = SamplingColumns(table.max_num_seqs)
        self._requests: dict[str, RequestState] = {}
        self._completions: dict[int, Completion] = {}  # by row
        self._in_flight: deque[_InFlight] = deque()
        self._forking: set[str] = set()  # requests whose further completions wait for the prompt of the first
        self._telling_prompts: set[int] = set()  # rows that owe log-probabilities of their prompt
        self._counts = {"prompt": 0, "generation": 0, "steps": 0, "preemptions": 0, "peak_blocks": 0}
        self._model_s = self._schedule_s = 0.0

    # ------------------------------------------------------------ requests

    def add_request(
        self,
        request_id: str,
        prompt: str | Mapping[str, Any] | Sequence[int],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float = math.inf,
        stream: bool = True,
    ) -> None:
        """Take a request.

        Args:
            request_id: unique among live requests.
            prompt: text, ``{"prompt": ...}``, ``{"prompt_token_ids": [...]}`` or token ids.
            params: how to sample; None: the defaults of the checkpoint.
            priority: lower is sooner, for schedulers that look at it.
            deadline: seconds on the monotonic clock, for schedulers that look at it.
            stream: whether :meth:`step` reports the request at every token rather than only at its end.
        Raises:
            RequestError: the request can never be served as asked; nothing was taken.
        """
        if request_id in self._requests:
            raise RequestError(f"request {request_id!r} is already being served; give each request its own id")
        request = self._admission.admit(request_id, prompt, params, priority=priority, deadline=deadline)
        state = self._admission.begin(request, stream=stream)
        self._requests[request_id] = state
        most_tokens = self._admission.most_tokens(request)
        prompt_ids = request.prompt_token_ids
        for completion in state.completions:
            row = self._table.add(
                request_id, len(prompt_ids), most_tokens, prompt_ids[-1], is_held=completion.index > 0
            )
            self._table.priority[row] = priority
            self._table.deadline[row] = deadline
            completion.row = row
            self._completions[row] = completion
        if len(state.completions) > 1:
            self._forking.add(request_id)
        if request.params.prompt_logprobs is not None:
            self._telling_prompts.add(state.completions[0].row)
        self._counts["prompt"] += len(prompt_ids)

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request now and free its blocks; what it has produced, or None if there is no such request."""
        state = self._requests.get(request_id)
        if state is None:
            return None
        for completion in state.completions:
            if not completion.is_finished:
                completion.abort()
                self._end(completion)
        return state.output()

    def has_unfinished_requests(self) -> bool:
        """Whether :meth:`step` has anything to do."""
        return bool(self._requests or self._in_flight)

    # ------------------------------------------------------------ the loop

    def step(self) -> list[RequestOutput]:
        """Launch one step and read back the oldest; news of requests that stream, and all that ended.

        Raises:
            PluginError: the scheduler broke a rule, or decides nothing though requests wait.
        """
        began = time.perf_counter()
        model_before = self._model_s
        launched = self._launch()
        updated: dict[str, RequestState] = {}
        if self._in_flight and (len(self._in_flight) > self._lag or not launched):
            self._read_back(self._in_flight.popleft(), updated)
        self._schedule_s += time.perf_counter() - began - (self._model_s - model_before)
        return [state.output() for state in updated.values() if state.stream or state.is_finished]

    def stats(self) -> EngineStats:
        """Counts since the engine began, and what holds now."""
        blocks = self._table.blocks
        return EngineStats(
            num_running=self._table.max_num_seqs - self._table.num_free_slots,
            num_waiting=len(self._table.waiting),
            num_blocks_used=blocks.num_blocks - blocks.num_free,
            num_blocks=blocks.num_blocks,
            peak_blocks_used=self._counts["peak_blocks"],
            num_prompt_tokens=self._counts["prompt"],
            num_generation_tokens=self._counts["generation"],
            num_steps=self._counts["steps"],
            num_preemptions=self._counts["preemptions"],
            model_s=self._model_s,
            schedule_s=self._schedule_s,
        )

    def check(self) -> None:
        """Return if no block, slot or row is leaked or owned twice.

        Raises:
            AssertionError: what does not add up.
        """
        self._table.check()
        if not self.has_unfinished_requests():
            assert self._table.num_free_blocks == self._table.blocks.num_blocks, "blocks are held by nobody"

    # ------------------------------------------------------------ launching

    def _launch(self) -> bool:
        """Decide and carry out one step; whether there was one."""
        table = self._table
        if not (len(table.waiting) or len(table.running)):
            return False
        schedule = validated(self._scheduler.schedule(self._window), table, self._scheduler_name)
        for row in schedule.preempt.tolist():
            self._counts["preemptions"] += int(table.num_computed[row] > 0)
            table.preempt(row)
        if len(schedule.rows) == 0:
            if not (self._in_flight or len(schedule.preempt)):
                raise PluginError(
                    f"scheduler {self._scheduler_name!r} scheduled nothing though {len(table.waiting)} sequences wait "
                    f"and {len(table.running)} run; a scheduler must make progress when nothing is in flight"
                )
            return False
        self._start(schedule.rows)
        step, completions, wishes = self._prepare(schedule)
        before = time.perf_counter()
        result = self._runner.execute(step)
        self._model_s += time.perf_counter() - before
        self._advance(step, schedule, result, completions)
        self._in_flight.append(_InFlight(step.rows[step.sampled], completions, wishes, result))
        return True

    def _start(self, rows: Int32) -> None:
        table = self._table
        for row in rows[table.state[rows] == State.WAITING].tolist():
            table.start(row)
            completion = self._completions[row]
            self._sampling.set(
                int(table.slot[row]), completion.tokens.params, completion.request.seed, completion.index
            )
            completion.request.scheduled()

    def _prepare(self, schedule: Schedule) -> tuple[Step, list[Completion], list[tuple[RequestState, PromptLogprobs]]]:
        """The step, rows in order of slots; the completions it samples; the prompt log-probabilities it owes."""
        table = self._table
        order = np.argsort(table.slot[schedule.rows])
        rows, num_tokens = schedule.rows[order], schedule.num_tokens[order]
        needed = blocks_needed(table, rows, num_tokens)
        if needed.any():
            table.extend(rows[needed > 0], needed[needed > 0])
            used = table.blocks.num_blocks - table.blocks.num_free
            self._counts["peak_blocks"] = max(self._counts["peak_blocks"], used)
        batch = build_batch(table, self._tokens_of, rows, num_tokens)
        known = table.num_tokens[rows]
        sampled = np.flatnonzero(batch.context_lens == known).astype(np.int32)
        sampled_rows = rows[sampled]
        completions = [self._completions[row] for row in sampled_rows.tolist()]
        sampling = self._sampling.gather(table.slot[sampled_rows], known[sampled]) if len(sampled) else None
        wishes = self._wishes(rows, num_tokens, batch.cu_seqlens_q)
        tokens = [completion.tokens for completion in completions]
        step = Step(batch, rows, sampled, sampling, tokens, [wish for _, wish in wishes])
        return step, completions, wishes

    def _wishes(self, rows: Int32, num_tokens: Int32, cu_seqlens_q: Int32) -> list[tuple[RequestState, PromptLogprobs]]:
        """What this step can tell of prompt log-probabilities not told yet; a recomputed prompt is not told twice."""
        wishes = []
        for b in np.flatnonzero(np.isin(rows, list(self._telling_prompts))).tolist() if self._telling_prompts else ():
            state, start = self._completions[int(rows[b])].request, int(self._table.num_computed[rows[b]])
            first = max(start, state.num_prompt_logprobs)
            targets = state.prompt_after(first, start + int(num_tokens[b]))
            if len(targets):
                state.num_prompt_logprobs = first + len(targets)
                wish = PromptLogprobs(int(cu_seqlens_q[b]) + first - start, targets, state.prompt_width)
                wishes.append((state, wish))
        return wishes

    def _advance(self, step: Step, schedule: Schedule, result: StepResult, completions: Sequence[Completion]) -> None:
        """The columns after a launch: what is computed, and what will be known once it is read back."""
        table = self._table
        table.num_computed[step.rows] = step.batch.context_lens
        self._counts["steps"] += 1
        if result.sampled is None:
            return
        rows = step.rows[step.sampled]
        table.num_tokens[rows] += 1
        table.num_in_flight[rows] += 1
        table.last_token[rows] = result.sampled.token_ids
        if np.any(table.num_tokens[rows] >= table.most_tokens[rows]):
            table.running_changed()
        if self._forking:
            for completion in completions:
                self._fork(completion)

    def _fork(self, first: Completion) -> None:
        """Let the siblings of a completion begin, now that the prompt they share is computed."""
        if first.request.request_id not in self._forking or first.index != 0:
            return
        self._forking.discard(first.request.request_id)
        for completion in first.request.completions[1:]:
            # At least one token is left to compute, for the logits; the last, partly filled block is not shared.
            self._table.share_prompt(first.row, completion.row, completion.tokens.num_prompt_tokens - 1)
            self._table.wait(completion.row)

    def _tokens_of(self, row: int) -> SequenceTokens:
        return self._completions[row].tokens

    # ------------------------------------------------------------ reading back

    def _read_back(self, step: _InFlight, updated: dict[str, RequestState]) -> None:
        """Take a step's tokens; completions that end give up slot and blocks."""
        for (state, _), columns in zip(step.wishes, step.result.prompt_logprobs, strict=True):
            state.add_prompt_logprobs(columns)
        sampled = step.result.sampled
        if sampled is None:
            return
        self._table.num_in_flight[step.rows] -= 1
        now = time.monotonic()
        for i, (completion, token_id) in enumerate(zip(step.completions, sampled.token_ids.tolist(), strict=True)):
            if completion.is_finished:  # it ended while this step was in flight
                self._table.release_row(completion.row)
                continue
            if sampled.is_corrupt is not None and sampled.is_corrupt[i]:
                completion.abort("the logits are not numbers")
            else:
                self._counts["generation"] += 1
                completion.add_token(token_id, now)
                if completion.wants_logprobs and sampled.logprobs is not None:
                    completion.add_logprobs(sampled.logprobs, i)
            if completion.is_finished:
                self._end(completion)
            updated[completion.request.request_id] = completion.request

    def _end(self, completion: Completion) -> None:
        """Give up what an ended completion holds; the request too once it was the last."""
        state = completion.request
        self._table.finish(completion.row)
        del self._completions[completion.row]
        self._telling_prompts.discard(completion.row)
        if completion.index == 0 and state.request_id in self._forking:
            # It ended before its siblings could begin from its prompt: they begin on their own.
            self._forking.discard(state.request_id)
            for sibling in state.completions[1:]:
                if not sibling.is_finished:
                    self._table.wait(sibling.row)
        if state.is_finished:
            state.finished()
            del self._requests[state.request_id]
