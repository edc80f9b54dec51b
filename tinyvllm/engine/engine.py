"""The loop: schedule, validate, compute, read back. One step at a time, one step ahead if asked.

A step is launched, then the oldest step in flight is read back. With a lag of zero that is the same step. With a lag of
one the scheduler decides without the newest tokens: a stop condition is noticed after the next step was launched, so
a sequence that has ended costs at most one wasted step.

Before the engine changes its ``Books`` it notes what it is about to change in its ``Recovery``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from tinyvllm.engine.admission import Admission
from tinyvllm.engine.books import Books
from tinyvllm.engine.failures import failure_of, request_failure_of
from tinyvllm.engine.outbox import Delivery, Unread
from tinyvllm.engine.read_back import read_back
from tinyvllm.engine.recovery import Recovery
from tinyvllm.engine.request_state import RequestState
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.engine.stats import Counts, EngineStats
from tinyvllm.engine.step_launcher import StepLauncher
from tinyvllm.engine.validate import validated
from tinyvllm.engine.window import SchedulerWindow
from tinyvllm.errors import DeviceError, InvariantError, PluginError, RequestError, TinyvllmError
from tinyvllm.interfaces import Scheduler
from tinyvllm.outputs import OutputDelta
from tinyvllm.plugin_call import PluginCall, PluginName, is_fatal
from tinyvllm.request import Request, SamplingParams
from tinyvllm.shapes import Int32
from tinyvllm.step import Runner


class Engine:
    """Requests in, tokens out. Every method may be called from any thread; one at a time has the engine.

    A request belongs to an owner, who alone gets its deltas; ids are unique among the requests of one owner. The deltas
    of requests that were added without an owner come from :meth:`step`.

    Args:
        table: columns, block tables and free lists.
        runner: carries out steps.
        scheduler: decides them.
        scheduler_name: the plugin, for error messages.
        admission: turns prompts into requests, or refuses them.
        lag: 0, or 1 to decide a step before the one in flight was read back.
    """

    def __init__(
        self,
        *,
        table: SequenceTable,
        runner: Runner,
        scheduler: Scheduler,
        scheduler_name: PluginName,
        admission: Admission,
        lag: int = 0,
    ) -> None:
        counts = Counts()
        self._books = Books(table, StepLauncher(table, runner, counts), counts)
        self._recovery = Recovery(self._books, runner)
        self._runner = runner
        self._scheduler = scheduler
        self._scheduler_name = scheduler_name
        self._schedule_call = PluginCall(scheduler_name, "schedule")
        self._window = SchedulerWindow(table)
        self._admission = admission
        self._lag = lag
        self._lock = threading.RLock()
        self._is_preempted = False  # whether the last decision preempted a row

    def add_request(
        self,
        request_id: str,
        prompt: str | Mapping[str, Any] | Sequence[int],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float = math.inf,
        stream: bool = True,
        owner: Hashable = None,
    ) -> None:
        """Take a request, or change nothing.

        Args:
            request_id: unique among the owner's live requests.
            prompt: text, ``{"prompt": ...}``, ``{"prompt_token_ids": [...]}`` or token ids.
            params: how to sample; None: the defaults of the checkpoint.
            priority: lower is sooner, for schedulers that look at it.
            deadline: seconds on the monotonic clock, for schedulers that look at it.
            stream: whether there is a delta at every token, rather than one at the end with the whole output.
            owner: who gets the deltas; None: whoever calls :meth:`step`.
        Raises:
            RequestError: the request can never be served as asked; nothing was taken.
            DeviceError: the device is lost, and with it the engine.
        """
        with self._lock:
            self._recovery.mend()
            self._recovery.check_device()
            try:
                request = self._admission.admit(request_id, prompt, params, priority=priority, deadline=deadline)
                if self._books.requests.get(owner, request_id) is not None:
                    raise RequestError(f"request {request_id!r} is already being served; give each request its own id")
                state = self._begun(request, stream, owner)
            except BaseException as error:
                if is_fatal(error) or isinstance(error, TinyvllmError):
                    raise
                raise request_failure_of(request_id, error, "the request cannot be taken") from error
            self._recovery.at_work_on = (state,)
            try:
                self._books.enter(state, self._admission.max_tokens(state.request))
                self._recovery.at_work_on = None
            except BaseException as error:
                self._recovery.at_work_on = (state,)
                self._recovery.recover(error)
                self._books.outbox.withdraw(state, {})
                if is_fatal(error):
                    raise
                raise failure_of(error) from error

    def abort_request(self, request_id: str, *, owner: Hashable = None) -> list[OutputDelta]:
        """End a request now and free its blocks.

        Returns:
            the deltas that end it, those that waited included; empty if there is no such request. If the call is
            interrupted, the request has ended or goes on; once it has ended, its deltas come from the next step.
        """
        withdrawn: Unread = {}
        try:
            with self._lock:
                return self._abort(request_id, owner, withdrawn)
        except BaseException:
            with self._lock:
                self._books.outbox.put_back(owner, withdrawn)
            raise

    def has_unfinished_requests(self, owner: Hashable = None) -> bool:
        """Whether :meth:`step` has anything to compute, or to return, for the requests of an owner."""
        with self._lock:
            if self._books.requests.has_any(owner) or self._books.outbox.has_unread(owner):
                return True
            return len(self._books.requests) == 0 and len(self._books.in_flight) > 0

    def has_live_requests(self, owner: Hashable) -> bool:
        """Whether requests of an owner have not ended."""
        with self._lock:
            return self._books.requests.has_any(owner)

    def _abort(self, request_id: str, owner: Hashable, withdrawn: Unread) -> list[OutputDelta]:
        self._recovery.mend()
        state = self._books.requests.get(owner, request_id)
        if state is None:
            return []
        self._recovery.at_work_on = (state,)
        try:
            self._books.abort(state)
            self._recovery.at_work_on = None
        except BaseException as error:
            self._recovery.at_work_on = (state,)
            self._recovery.recover(error)
            if is_fatal(error):
                raise
        return self._books.outbox.withdraw(state, withdrawn)

    def _begun(self, request: Request, stream: bool, owner: Hashable) -> RequestState:
        """The state of a request that has no rows yet."""
        state = self._admission.begin(request, stream=stream)
        state.owner = owner
        for completion in state.completions:
            tokens = completion.tokens
            completion.runs_ahead = self._runner.can_run_ahead(tokens.params, tokens.rules)
        return state

    def step(self) -> list[OutputDelta]:
        """Launch one step and read back the oldest one.

        Returns:
            deltas of requests without an owner: of those that stream and got tokens, and of all that ended. If deltas
            wait already, of a call that raised or of a step that somebody else ran, these alone, and no step is run.
        Raises:
            PluginError: a plugin raised, or broke a rule of its socket.
            TinyvllmError: whatever else made the step fail. The requests that it concerned have ended; their deltas,
                and all others that there are, come from the next call.
        """
        delivery = Delivery()
        try:
            with self._lock:
                self._recovery.mend()  # first: it may end requests, and add to their deltas
                if not self._books.outbox.has_unread(None):
                    self.advance()
                return self._books.outbox.take(None, delivery)
        except BaseException:
            delivery.is_lost = True
            raise

    def advance(self) -> None:
        """Run one step, as :meth:`step` does; the deltas wait for :meth:`take`.

        Raises:
            TinyvllmError: as for :meth:`step`.
        """
        with self._lock:
            self._recovery.mend()
            self._recovery.check_device()
            counts = self._books.counts
            began, outside_s = time.perf_counter(), counts.launch_s + counts.wait_s
            try:
                self._run_step()
                if not len(self._books.requests):  # idle: a check delays no request
                    self._books.check()
            except BaseException as error:
                self._recovery.recover(error)
                if is_fatal(error):
                    raise
                raise failure_of(error if self._recovery.lost is None else DeviceError(self._recovery.lost)) from error
            counts.schedule_s += time.perf_counter() - began - (counts.launch_s + counts.wait_s - outside_s)

    def take(self, owner: Hashable) -> list[OutputDelta]:
        """The deltas of an owner's requests that have come since the last call.

        They are forgotten at once: who calls this has a thread that no signal reaches. Those that :meth:`step` returns
        are kept until its next call, and returned again if they were lost to an interruption.
        """
        with self._lock:
            self._recovery.mend()
            deltas = self._books.outbox.take(owner, Delivery())
            self._books.outbox.has_unread(owner)  # which drops what was taken
            return deltas

    def stats(self) -> EngineStats:
        """Counts since the engine began, and what holds now; during a step some may be those from before it."""
        return self._books.stats()

    def check(self) -> None:
        """Return if no block, slot or row is leaked or owned twice.

        Raises:
            InvariantError: what does not add up.
        """
        with self._lock:
            self._recovery.mend()
            self._books.check()

    def _run_step(self) -> None:
        """Launch the next step, and read back the oldest one if more are in flight than the lag allows."""
        books = self._books
        lag = 0 if books.num_synchronous or self._recovery.must_read_back else self._lag
        while len(books.in_flight) > lag:
            self._read_back()
        self._recovery.must_read_back = False
        is_launched = self._launch()
        if books.in_flight and (len(books.in_flight) > lag or not is_launched):
            self._read_back()
        elif len(books.requests) and not is_launched and not books.in_flight and not self._is_preempted:
            raise InvariantError(
                f"{len(books.requests)} requests are left, and nothing of them waits, runs or is in flight"
            )

    def _launch(self) -> bool:
        """Decide and carry out one step; False if there was nothing to compute."""
        books, table, self._is_preempted = self._books, self._books.table, False
        if not (table.num_waiting or len(table.running)):
            return False
        with self._schedule_call:  # the checks too: a decision may be any object, and fail when it is read
            decision = self._scheduler.schedule(self._window)
            schedule = validated(decision, table, self._scheduler_name, books.launcher.kept)
        if not len(schedule.rows) and not self._hold_something(schedule.preempt):
            if not books.in_flight:
                raise PluginError(
                    f"{self._scheduler_name} scheduled nothing though {table.num_waiting} sequences wait and "
                    f"{len(table.running)} run; a scheduler must make progress when nothing is in flight"
                )
            return False
        self._recovery.at_work_on = schedule
        self._is_preempted = len(schedule.preempt) > 0
        books.launcher.preempt(schedule.preempt)
        if len(schedule.rows):
            books.in_flight.append(books.launcher.launch(schedule))
        self._recovery.at_work_on = None
        return len(schedule.rows) > 0

    def _read_back(self) -> None:
        """Read back the oldest step in flight."""
        step = self._books.in_flight[0]
        self._recovery.at_work_on = step
        read_back(step, self._books)
        self._books.in_flight.popleft()
        self._recovery.at_work_on = None

    def _hold_something(self, rows: Int32) -> bool:
        """Whether preempting these rows frees a slot or a block."""
        table = self._books.table
        return bool((table.slot.take(rows) >= 0).any() or table.num_blocks.take(rows).any())
