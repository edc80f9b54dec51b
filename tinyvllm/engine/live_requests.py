"""The requests of an engine that have not ended, and the outputs that wait for their owners."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from tinyvllm.engine.completion import Completion, RequestState
from tinyvllm.outputs import RequestOutput


class LiveRequests:
    """Requests by owner and id; the newest output of each that nobody has taken yet.

    An output is kept until the call that returned it has returned: the owner's next call drops it.
    """

    def __init__(self) -> None:
        self._states: dict[Hashable, dict[str, RequestState]] = {}
        self._outputs: dict[Hashable, dict[str, RequestOutput]] = {}
        self._taken: dict[Hashable, list[RequestOutput]] = {}  # by the owner's last call of `take`

    def __iter__(self) -> Iterator[RequestState]:
        for states in [*self._states.values()]:
            yield from [*states.values()]

    def __len__(self) -> int:
        return sum(map(len, self._states.values()))

    def completions(self) -> Iterator[Completion]:
        """Those that have not ended."""
        for state in self:
            for completion in state.completions:
                if not completion.is_finished:
                    yield completion

    def get(self, owner: Hashable, request_id: str) -> RequestState | None:
        """The live request of that id, if there is one."""
        return self._states.get(owner, {}).get(request_id)

    def add(self, state: RequestState) -> None:
        """Know a request."""
        self._states.setdefault(state.owner, {})[state.request_id] = state

    def remove(self, state: RequestState) -> None:
        """Know it no more; nothing if it is not known."""
        states = self._states.get(state.owner, {})
        if states.get(state.request_id) is state:
            del states[state.request_id]
            if not states:
                self._states.pop(state.owner, None)

    def of(self, owner: Hashable) -> bool:
        """Whether an owner has live requests."""
        return owner in self._states

    # ------------------------------------------------------------ outputs

    def put(self, state: RequestState) -> None:
        """Keep the output of a request as it is now, in place of an earlier one."""
        output = state.output()
        self._outputs.setdefault(state.owner, {})[state.request_id] = output

    def deliver(self, state: RequestState) -> None:
        """A request has ended: keep its output, and know it no more. Done twice, it is the same as once."""
        state.finished()
        self.put(state)
        self.remove(state)

    def take(self, owner: Hashable) -> list[RequestOutput]:
        """The outputs of an owner's requests that no earlier call has returned, in the order in which they came."""
        self.has_outputs(owner)
        outputs = list(self._outputs.get(owner, {}).values())
        if outputs:
            self._taken[owner] = outputs
        return outputs

    def give_back(self, owner: Hashable) -> None:
        """The last call of :meth:`take` did not return: the owner has not got its outputs."""
        self._taken.pop(owner, None)

    def has_outputs(self, owner: Hashable) -> bool:
        """Whether outputs of an owner's requests wait to be taken. The owner has got what was taken before."""
        kept = self._outputs.get(owner)
        if kept is None:
            return False
        for output in self._taken.pop(owner, ()):
            if kept.get(output.request_id) is output:
                del kept[output.request_id]
        if not kept:
            self._outputs.pop(owner, None)
        return bool(kept)

    def withdraw(self, state: RequestState) -> RequestOutput:
        """The output of a request as it is now; an earlier one that nobody has taken is dropped."""
        output = state.output()
        self._outputs.get(state.owner, {}).pop(state.request_id, None)
        return output
