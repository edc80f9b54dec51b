"""One thread that steps an engine for any number of callers. Knows the engine, and nothing of prompts or text.

Callers hand their requests over and wait, so that a signal reaches a caller and never the engine's bookkeeping. The
requests of all callers share the batch; each caller gets its own deltas. The thread lives while a caller waits.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyvllm.engine.engine import Engine
from tinyvllm.engine.failures import failure_of
from tinyvllm.errors import TinyvllmError
from tinyvllm.outputs import OutputDelta
from tinyvllm.request import SamplingParams

_YIELD_EVERY_S = 0.05
_YIELD_S = 1e-4  # the engine's lock is not fair: whoever else waits for it gets it while the thread sleeps


@dataclass(frozen=True, slots=True)
class NewRequest:
    """One request of a caller; the fields are arguments of :meth:`Engine.add_request`."""

    prompt: str | Mapping[str, Any] | Sequence[int]
    params: SamplingParams | None = None
    priority: int = 0


class Call:
    """Requests of one caller, and the deltas that have come of them.

    Args:
        requests: all of them are taken, or none.
        request_ids: of the requests, in their order.
        stream: whether deltas come at every token.
    """

    def __init__(self, requests: Sequence[NewRequest], request_ids: Sequence[str], *, stream: bool) -> None:
        self.requests, self.request_ids, self.stream = requests, request_ids, stream
        # Guarded by the thread's condition:
        self.deltas: list[OutputDelta] = []  # that the caller has not taken
        self.num_left = len(requests)
        self.is_given_up = False  # by its caller
        self.is_over = False
        self.error: TinyvllmError | None = None


class EngineThread:
    """Steps an engine for callers.

    Args:
        engine: it may have other requests, of those who call :meth:`Engine.step`; they advance too.
    """

    def __init__(self, engine: Engine) -> None:
        self._ids = itertools.count()
        self._engine = engine
        # A condition's own `with` can be interrupted with the lock taken; that of the lock itself cannot.
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._arriving: list[Call] = []
        self._calls: list[Call] = []
        self._thread: threading.Thread | None = None

    def new_call(self, requests: Sequence[NewRequest], *, stream: bool = False) -> Call:
        """Requests that :meth:`deltas_of` will hand over."""
        return Call(requests, [f"llm-{next(self._ids)}" for _ in requests], stream=stream)

    def deltas_of(self, call: Call, timeout_s: float | None = None) -> Iterator[Sequence[OutputDelta]]:
        """Hand a call over; its deltas as they come, until all of its requests have ended.

        Leaving the iteration, by an exception or by closing it, ends the requests.

        Args:
            call: of :meth:`new_call`, not handed over before.
            timeout_s: after so long without a delta there comes an empty sequence.
        Raises:
            TinyvllmError: a request was refused, or has failed; the others of the call are ended.
        """
        try:
            self._submit(call)
            is_over = False
            while not is_over:
                deltas, is_over = self._wait(call, timeout_s)
                for delta in deltas:
                    if delta.error is not None:
                        raise delta.error
                yield deltas
        finally:
            self._give_up(call)

    def _submit(self, call: Call) -> None:
        with self._lock:
            self._arriving.append(call)
            if not self._is_alive():
                self._thread = threading.Thread(target=self._serve, name="tinyvllm engine", daemon=True)
                self._thread.start()

    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()  # a forked process has no thread

    def _wait(self, call: Call, timeout_s: float | None) -> tuple[Sequence[OutputDelta], bool]:
        """The deltas of a call that its caller has not taken, as soon as there are some, and whether it is over."""
        with self._lock:
            self._condition.wait_for(lambda: call.deltas or call.is_over, timeout_s)
            if call.error is not None:
                raise call.error
            deltas, call.deltas = call.deltas, []
            return deltas, call.is_over

    def _give_up(self, call: Call) -> None:
        """End the requests of a call that go on, and wait until they have ended; nothing if the call is over."""
        with self._lock:
            call.is_given_up = True
            self._condition.wait_for(
                lambda: call.is_over or not self._is_alive() or call not in (*self._arriving, *self._calls)
            )

    def _serve(self) -> None:
        """The thread."""
        try:
            yielded_at = time.monotonic()
            while self._take_calls():
                self._advance()
                if time.monotonic() - yielded_at > _YIELD_EVERY_S:
                    time.sleep(_YIELD_S)
                    yielded_at = time.monotonic()
        except BaseException as error:
            self._end_all(failure_of(error))  # or their callers would wait for a thread that has ended

    def _take_calls(self) -> bool:
        """Begin the calls that have arrived, and end those that were given up; False if none is left."""
        with self._lock:
            arriving = self._arriving
            self._calls, self._arriving = [*self._calls, *arriving], []
            given_up = [call for call in self._calls if call.is_given_up and not call.is_over]
        for call in arriving:
            if not call.is_given_up:
                self._begin(call)
        for call in given_up:
            self._end(call)
        with self._lock:
            self._calls = [call for call in self._calls if not call.is_over]
            if not self._calls and not self._arriving:
                self._thread = None
                return False
        return True

    def _begin(self, call: Call) -> None:
        try:
            for request_id, request in zip(call.request_ids, call.requests, strict=True):
                self._engine.add_request(
                    request_id,
                    request.prompt,
                    request.params,
                    priority=request.priority,
                    stream=call.stream,
                    owner=call,
                )
        except Exception as error:
            self._end(call, failure_of(error))
        else:
            if not call.requests:
                self._end(call)

    def _end(self, call: Call, error: TinyvllmError | None = None) -> None:
        """Abort the requests of a call that go on; the call is over."""
        for request_id in call.request_ids:
            self._engine.abort_request(request_id, owner=call)
        with self._lock:
            call.is_over, call.error = True, error
            self._condition.notify_all()

    def _advance(self) -> None:
        """Run one step, and give its deltas to the calls."""
        with contextlib.suppress(BaseException):  # the requests that an exception concerns have ended with it
            self._engine.advance()
        with self._lock:
            has_new = False
            for call in self._calls:
                if call.deltas and self._engine.has_live_requests(call):
                    continue  # until the caller has taken these, newer ones are merged in the engine
                deltas = self._engine.take(call)
                call.deltas += deltas
                call.num_left -= sum(delta.finished for delta in deltas)
                call.is_over = call.is_over or call.num_left == 0
                has_new |= bool(deltas)
            if has_new:
                self._condition.notify_all()

    def _end_all(self, error: TinyvllmError) -> None:
        """End every call."""
        with self._lock:
            calls = [*self._calls, *self._arriving]
            self._calls, self._arriving, self._thread = [], [], None
        for call in calls:
            if not call.is_over:
                self._end(call, error)
