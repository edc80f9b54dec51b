"""The books of an engine: its requests, the rows of their completions, and the steps in flight.

They are changed under the engine's lock only, by the engine and by the functions that it passes them to.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from tinyvllm.engine.blocks import require
from tinyvllm.engine.columns import NUM_STOP_IDS
from tinyvllm.engine.completion import Completion
from tinyvllm.engine.failures import request_failure_of
from tinyvllm.engine.live_requests import LiveRequests
from tinyvllm.engine.outbox import Outbox
from tinyvllm.engine.request_state import RequestState
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.engine.stats import Counts, EngineStats
from tinyvllm.engine.step_launcher import InFlight, StepLauncher
from tinyvllm.errors import TinyvllmError
from tinyvllm.plugin_call import is_fatal


class Books:
    """Everything that changes when a request comes, ends or fails, so that all of it changes together.

    Args:
        table: a row for each live completion.
        launcher: knows the completions that have not ended.
        counts: the engine's own.

    Attributes:
        requests: those that have not ended.
        outbox: the deltas that wait for the owners of their requests.
        in_flight: steps that were launched and not yet read back, the oldest first.
        num_synchronous: live completions that cannot run ahead. While there are any, each step is read back before
            the next one is decided.
    """

    def __init__(self, table: SequenceTable, launcher: StepLauncher, counts: Counts) -> None:
        self.table = table
        self.launcher = launcher
        self.counts = counts
        self.requests = LiveRequests()
        self.outbox = Outbox()
        self.in_flight: deque[InFlight] = deque()
        self.num_synchronous = 0

    def enter(self, state: RequestState, max_tokens: int) -> None:
        """Give each completion of a request a row, and let the first one be scheduled.

        Args:
            state: of the new request.
            max_tokens: of each of its sequences, prompt and output.
        """
        request, table = state.request, self.table
        prompt_ids = request.prompt_token_ids
        for completion in state.completions:
            row = table.add(request.request_id, len(prompt_ids), max_tokens, prompt_ids[-1])
            table.priority[row], table.deadline[row] = request.priority, request.deadline
            completion.row = row
            stop_ids = list(completion.stop_ids)[:NUM_STOP_IDS]
            table.stop_ids[row, : len(stop_ids)] = stop_ids
        self.launcher.add(state)
        table.wait(state.completions[0].row)
        self.num_synchronous += sum(not completion.runs_ahead for completion in state.completions)
        self.counts.prompt_tokens += len(prompt_ids)
        self.requests.add(state)

    def end(self, completion: Completion) -> None:
        """Take row, slot and blocks from a completion that has ended; the last one of a request ends the request."""
        if self.table.slot[completion.row] >= 0:
            completion.tokens.move_out()
        self.num_synchronous -= not completion.runs_ahead
        self.launcher.remove(completion)
        self.table.free(completion.row)
        if completion.request.is_finished:
            self._end_request(completion.request)

    def _end_request(self, state: RequestState) -> None:
        """Forget a request whose completions have ended, once its last delta can be taken. May be repeated."""
        state.finished()
        self.outbox.add_whole(state)
        self.requests.remove(state)

    def abort(self, state: RequestState) -> None:
        """End a request now; what was read back of its completions is kept."""
        for completion in state.completions:
            if completion.is_finished:
                continue
            self.outbox.open(completion)
            try:
                completion.catch_up(self.num_read_back(completion))
                completion.abort()
            except BaseException as error:
                if is_fatal(error):
                    raise
                self.fail(state, request_failure_of(state.request_id, error))
                return
            self.end(completion)

    def fail(self, state: RequestState, error: TinyvllmError) -> None:
        """End a request whose rows are in order."""
        state.error = error
        for completion in state.completions:
            if not completion.is_finished:
                self.fail_completion(completion, error)
                self.end(completion)

    def fail_completion(self, completion: Completion, error: TinyvllmError) -> None:
        """End a completion with the tokens that are certain; it keeps its row."""
        self.outbox.open(completion)
        completion.fail(str(error), self.num_read_back(completion))

    def num_read_back(self, completion: Completion) -> int:
        """Tokens of a completion, with its prompt, that no failure of a step in flight can take back."""
        return int(self.table.num_read[completion.row])

    def drop(self, step: InFlight) -> None:
        """Forget a step in flight and its tokens; nothing if it was read back."""
        self.in_flight = deque(each for each in self.in_flight if each is not step)

    def rebuild(self) -> None:
        """Derive everything anew from the requests that have not ended, and end those whose completions have ended.

        Done again after an interruption, it has the same result.
        """
        for state in self.requests:
            if state.is_finished:
                for completion in state.completions:
                    completion.tokens.move_out()
                self._end_request(state)
        live = [*self.requests.completions()]
        self.num_synchronous = sum(not completion.runs_ahead for completion in live)
        self.table.rebuild(np.array([completion.row for completion in live], np.int32))
        self.launcher.rebuild(self.requests)

    def check(self) -> None:
        """Return if no block, slot or row is leaked or owned twice.

        Raises:
            InvariantError: what does not add up.
        """
        self.table.check()
        live = sorted(completion.row for completion in self.requests.completions())
        require(live == np.flatnonzero(self.table.state).tolist(), "rows are not those of the live requests")
        if not len(self.requests):
            require(self.table.num_free_blocks == self.table.blocks.num_blocks, "blocks are held by nobody")

    def stats(self) -> EngineStats:
        """Counts since the engine began, and what holds now."""
        blocks, counts = self.table.blocks, self.counts
        return EngineStats(
            num_running=self.table.max_num_seqs - self.table.num_free_slots,
            num_waiting=len(self.table.waiting),
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
