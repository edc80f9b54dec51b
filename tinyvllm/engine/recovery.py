"""After an exception: the requests that it concerns end, and the books are derived anew from those that go on.

Nothing is undone line by line, so it does not matter what raised, or between which two lines.
"""

from __future__ import annotations

from tinyvllm.engine.books import Books
from tinyvllm.engine.completion import Completion
from tinyvllm.engine.failures import failure_of
from tinyvllm.engine.request_state import RequestState
from tinyvllm.engine.step_launcher import InFlight
from tinyvllm.engine.validate import CheckedSchedule
from tinyvllm.errors import DeviceError, TinyvllmError
from tinyvllm.plugin_call import is_fatal
from tinyvllm.step import Runner


class Recovery:
    """Notes what an engine is changing, and makes its books consistent again if the change is interrupted.

    Args:
        books: of the engine.
        runner: it has to recover too.

    Attributes:
        at_work_on: what the engine is changing right now: a decision that is carried out, a step that is read back, or
            requests that come or end. None: nothing, and all books are consistent. The engine sets it before the first
            change and clears it after the last.
        must_read_back: whether every step in flight is read back before the next decision, since the runner may have
            forgotten the newest tokens. Set by a recovery, cleared by the engine.
        lost: why no further step can be launched; None: one can.
    """

    def __init__(self, books: Books, runner: Runner) -> None:
        self._books = books
        self._runner = runner
        self._failure: TinyvllmError | None = None  # from which the engine is recovering
        self.at_work_on: CheckedSchedule | InFlight | tuple[RequestState, ...] | None = None
        self.must_read_back = False
        self.lost: str | None = None

    def check_device(self) -> None:
        """Return if steps can be launched.

        Raises:
            DeviceError: the device is lost, and why.
        """
        if self.lost is not None:
            raise DeviceError(self.lost)

    def mend(self) -> None:
        """Recover from a change that was interrupted, if recovering was interrupted too."""
        if self.at_work_on is not None:
            self.recover(KeyboardInterrupt())

    def recover(self, error: BaseException) -> None:
        """End the requests that a failure concerns, and derive all books anew from the others.

        Done again after an interruption, it has the same result.
        """
        work = self.at_work_on
        if work is None and is_fatal(error):
            return  # nothing was under way
        failure = self._failure = self._failure or failure_of(error)
        concerned = self._concerned()
        if isinstance(work, InFlight):
            self._books.drop(work)
        elif work is None:  # the scheduler: from here on something is under way
            self.at_work_on = tuple(concerned)
        for state in concerned:
            self._fail(state, failure)
        self._books.rebuild()
        self._recover_runner()
        self.must_read_back = True
        self._failure = None
        self.at_work_on = None

    def _concerned(self) -> list[RequestState]:
        """The requests that the noted change concerns; if none is noted, those that the scheduler decided about."""
        work, completions = self.at_work_on, list[Completion]()
        if isinstance(work, tuple):
            return [*work]
        if isinstance(work, InFlight):
            completions = [*work.computed]
        elif isinstance(work, CheckedSchedule):
            completions = self._books.launcher.completions_of(work)
        else:
            rows = {*self._books.table.running.tolist(), *self._books.table.waiting.tolist()}
            live = [*self._books.requests.completions()]
            completions = [completion for completion in live if completion.row in rows] or live
        states = {id(completion.request): completion.request for completion in completions}
        return list(states.values())

    def _fail(self, state: RequestState, error: TinyvllmError) -> None:
        """Fail a request without a look at its rows, which may be inconsistent; the books are rebuilt without it."""
        if all(completion.is_finished for completion in state.completions):
            return  # it has ended by itself
        state.error = error
        for completion in state.completions:
            if not completion.is_finished:
                completion.tokens.move_out()
                self._books.fail_completion(completion, error)

    def _recover_runner(self) -> None:
        """Make the runner ready for the next step; if it cannot be, every request fails, now and later."""
        if self.lost is None:
            try:
                self._runner.recover()
            except BaseException as error:
                if is_fatal(error):
                    raise
                lost = failure_of(error)
                self.lost = f"the engine has stopped, because its device is lost: {lost}; make a new one"
        if self.lost is not None:
            self._books.in_flight.clear()
            for state in self._books.requests:
                self._fail(state, DeviceError(self.lost))
            self._books.rebuild()
