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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Int32, Sampled
from tinyvllm.engine.admission import Admission
from tinyvllm.engine.completion import Completion, RequestState
from tinyvllm.engine.launch import InFlight, StepLauncher
from tinyvllm.engine.runner import Runner
from tinyvllm.engine.standing import StandingRun
from tinyvllm.engine.stats import Counts, EngineStats
from tinyvllm.engine.table import NUM_STOP_IDS, SequenceTable
from tinyvllm.engine.validate import validated
from tinyvllm.engine.window import SchedulerWindow
from tinyvllm.errors import PluginError, RequestError
from tinyvllm.interfaces import Scheduler
from tinyvllm.outputs import RequestOutput
from tinyvllm.request import SamplingParams


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
        runner: Runner,
        scheduler: Scheduler,
        scheduler_name: str,
        admission: Admission,
        lag: int = 0,
    ) -> None:
        self._table = table
        self._scheduler = scheduler
        self._scheduler_name = scheduler_name
        self._admission = admission
        self._lag = lag
        self._window = SchedulerWindow(table)
        self._counts = Counts()
        self._requests: dict[str, RequestState] = {}
        self._completions: dict[int, Completion] = {}  # by row
        self._runner = runner
        self._kept_in_step: set[int] = set()  # rows for which a step is read back before the next one begins
        self._run: StandingRun | None = None  # the decision that stands
        self._launcher = StepLauncher(table, runner, self._completions, self._counts)
        self._in_flight: deque[InFlight] = deque()

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
            stop_ids = list(completion.stop_ids)[:NUM_STOP_IDS]
            self._table.stop_ids[row, : len(stop_ids)] = stop_ids
            if not self._runner.can_run_ahead(completion.tokens.params, completion.tokens.rules):
                self._kept_in_step.add(row)
        if len(state.completions) > 1:
            self._launcher.forking.add(request_id)
        if request.params.prompt_logprobs is not None:
            self._launcher.telling_prompts.add(state.completions[0].row)
        self._counts.prompt_tokens += len(prompt_ids)

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request now and free its blocks; what it has produced, or None if there is no such request."""
        state = self._requests.get(request_id)
        if state is None:
            return None
        self._settle()
        for completion in state.completions:
            if not completion.is_finished:
                row = completion.row
                completion.catch_up(int(self._table.num_tokens[row] - self._table.num_in_flight[row]))
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
        counts = self._counts
        began, outside_s = time.perf_counter(), counts.launch_s + counts.wait_s
        told: dict[str, RequestState] = {}
        lag = 0 if self._kept_in_step else self._lag
        while len(self._in_flight) > lag:
            self._read_back(self._in_flight.popleft(), told)
        is_launched = self._launch()
        if self._in_flight and (len(self._in_flight) > lag or not is_launched):
            self._read_back(self._in_flight.popleft(), told)
        outputs = [state.output() for state in told.values()]
        counts.schedule_s += time.perf_counter() - began - (counts.launch_s + counts.wait_s - outside_s)
        return outputs

    def stats(self) -> EngineStats:
        """Counts since the engine began, and what holds now."""
        blocks, counts = self._table.blocks, self._counts
        return EngineStats(
            num_running=self._table.max_num_seqs - self._table.num_free_slots,
            num_waiting=len(self._table.waiting),
            num_blocks_used=blocks.num_blocks - blocks.num_free,
            num_blocks=blocks.num_blocks,
            peak_blocks_used=counts.peak_blocks,
            num_prompt_tokens=counts.prompt_tokens,
            num_generation_tokens=counts.generation_tokens,
            num_steps=counts.steps,
            num_preemptions=counts.preemptions,
            launch_s=counts.launch_s,
            wait_s=counts.wait_s,
            schedule_s=counts.schedule_s,
        )

    def check(self) -> None:
        """Return if no block, slot or row is leaked or owned twice.

        Raises:
            AssertionError: what does not add up.
        """
        self._table.check()
        if not self.has_unfinished_requests():
            assert self._table.num_free_blocks == self._table.blocks.num_blocks, "blocks are held by nobody"

    # ------------------------------------------------------------ launching and reading back

    def _launch(self) -> bool:
        """Decide and carry out one step; whether there was one."""
        table = self._table
        if self._run is not None:
            in_flight = self._launcher.launch_next(self._run)
            if in_flight is not None:
                self._in_flight.append(in_flight)
                self._run = in_flight.run
                return True
            self._settle()
        if not (len(table.waiting) or len(table.running)):
            return False
        schedule = validated(self._scheduler.schedule(self._window), table, self._scheduler_name)
        for row in schedule.preempt.tolist():
            self._counts.preemptions += int(table.num_computed[row] > 0)
            self._completions[row].tokens.move_out()
            table.preempt(row)
        if len(schedule.rows):
            self._in_flight.append(self._launcher.launch(schedule))
            self._run = self._in_flight[-1].run
            return True
        if not (self._in_flight or len(schedule.preempt)):
            raise PluginError(
                f"scheduler {self._scheduler_name!r} scheduled nothing though {len(table.waiting)} sequences wait "
                f"and {len(table.running)} run; a scheduler must make progress when nothing is in flight"
            )
        return False

    def _settle(self) -> None:
        """Let no decision stand: the columns are up to date afterwards."""
        if self._run is not None:
            self._run.settle()
            self._run = None

    def _read_back(self, step: InFlight, told: dict[str, RequestState]) -> None:
        """Take a step's tokens; completions that end give up slot and blocks. News go into ``told``."""
        began = time.perf_counter()
        result = step.pending.wait()
        self._counts.wait_s += time.perf_counter() - began
        for state, columns in zip(step.wishes, result.prompt_logprobs, strict=True):
            state.add_prompt_logprobs(columns)
        sampled = result.sampled
        if sampled is None:
            return
        num_dropped, now = 0, time.monotonic()
        for i in self._taken(step, sampled):
            completion = step.completions[i]
            if completion.finish_reason is not None:  # it ended while this step was in flight
                self._table.release_row(completion.row)
                num_dropped += 1
                continue
            if sampled.is_corrupt is not None and sampled.is_corrupt[i]:
                completion.catch_up(int(step.known[i]) - 1)
                completion.abort("the logits are not numbers, or the rules of the request forbid every token")
                num_dropped += 1
            else:
                completion.add_token(int(step.known[i]), now)
                if sampled.logprobs is not None and completion.wants_logprobs:
                    completion.add_logprobs(sampled.logprobs, i)
            state = completion.request
            if completion.finish_reason is not None:
                self._end(completion)
                if state.is_finished:
                    told[state.request_id] = state
            else:
                self._watch(completion)
            if state.stream:
                told[state.request_id] = state
        self._counts.generation_tokens += len(step.completions) - num_dropped

    def _taken(self, step: InFlight, sampled: Sampled) -> Sequence[int]:
        """Writes a step's tokens to the store; which of them may end something or are news to somebody."""
        looked_at: NDArray[np.bool_] | None
        if step.run is not None and step.run is self._run and not self._run.has_ended:
            looked_at = self._run.read(step.pending, sampled, step.known, is_stored=step.is_stored)
            if looked_at is None and step.are_last is None and sampled.is_corrupt is None:
                return ()
            if looked_at is None:
                looked_at = np.zeros(len(step.rows), bool)
        else:
            looked_at = self._taken_alone(step, sampled)
        if step.are_last is not None:
            looked_at |= step.are_last
        if sampled.is_corrupt is not None:
            looked_at |= sampled.is_corrupt.astype(bool)
        indices: list[int] = np.flatnonzero(looked_at).tolist()
        return indices

    def _taken_alone(self, step: InFlight, sampled: Sampled) -> NDArray[np.bool_]:
        """The same for a step of no decision that still stands."""
        table, rows, token_ids = self._table, step.rows, sampled.token_ids
        table.num_in_flight[rows] -= 1
        has_no_slot = table.slot.take(rows) < 0  # it ended, or was preempted, while this step was in flight
        if not step.is_stored:
            if has_no_slot.any():
                self._store_some(step, token_ids, has_no_slot)
            else:
                table.store(rows, token_ids, step.known)
        looked_at = table.is_watched.take(rows)
        looked_at |= has_no_slot
        looked_at |= (table.stop_ids.take(rows, axis=0) == token_ids[:, None]).any(axis=1)
        return looked_at

    def _store_some(self, step: InFlight, token_ids: Int32, has_no_slot: NDArray[np.bool_]) -> None:
        has_slot = ~has_no_slot
        self._table.store(step.rows[has_slot], token_ids[has_slot], step.known[has_slot])
        for i in np.flatnonzero(has_no_slot).tolist():
            if not step.completions[i].is_finished:  # preempted: its tokens are its own now
                step.completions[i].tokens.append(int(token_ids[i]))
                self._table.last_token[step.rows[i]] = token_ids[i]

    def _watch(self, completion: Completion) -> None:
        """Have each token of a completion looked at, or those alone that are its last or among its stop tokens."""
        has_many_stops = len(completion.stop_ids) > NUM_STOP_IDS
        self._table.watch(completion.row, completion.needs_each_token or has_many_stops)

    def _end(self, completion: Completion) -> None:
        """Give up what an ended completion holds; the request too once it was the last."""
        state, run = completion.request, self._run
        if run is not None and run.holds(completion.row):
            if run.is_all:
                run.settle()
                run.leave(completion.row)
            else:
                self._settle()
        if self._table.slot[completion.row] >= 0:
            completion.tokens.move_out()
        self._table.finish(completion.row)
        del self._completions[completion.row]
        self._kept_in_step.discard(completion.row)
        self._launcher.telling_prompts.discard(completion.row)
        if completion.index == 0 and state.request_id in self._launcher.forking:
            # It ended before its siblings could begin from its prompt: they begin on their own.
            self._launcher.forking.discard(state.request_id)
            for sibling in state.completions[1:]:
                if not sibling.is_finished:
                    self._table.wait(sibling.row)
        if state.is_finished:
            state.finished()
            del self._requests[state.request_id]
