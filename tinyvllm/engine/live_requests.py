"""The requests of an engine that have not ended, and the outputs that wait for their owners."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from tinyvllm.engine.completion import Completion, RequestState
from tinyvllm.outputs import RequestOutput


class LiveRequests:
    """Requests by owner and id; the newest output of each that nobody has taken yet.

    An output is kept until the call that returned it has returned: the owner's next call drops it.
    """

    def __init__(self) -> None:
        # An owner has an entry while there are requests: each change is one operation, or an interruption between two
        # would leave an owner without requests, and with something to wait for.
        self._states: dict[Hashable, dict[str, RequestState]] = {}
        # By request, not by its id: an id may be used again before the output of the first one was taken.
        self._outputs: dict[Hashable, dict[RequestState, RequestOutput]] = {}
        self._taken: dict[Hashable, Delivery] = {}  # by the last call of `take`

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
        """The live request of that id, if there is one; what is no string is the id of none."""
        return self._states.get(owner, {}).get(request_id) if isinstance(request_id, str) else None

    def add(self, state: RequestState) -> None:
        """Know a request."""
        states = self._states.get(state.owner)
        if states is None:
            self._states[state.owner] = {state.request_id: state}
        else:
            states[state.request_id] = state

    def remove(self, state: RequestState) -> None:
        """Know it no more; nothing if it is not known."""
        states = self._states.get(state.owner, {})
        if states.get(state.request_id) is state:
            if len(states) == 1:
                del self._states[state.owner]
            else:
                del states[state.request_id]

    def of(self, owner: Hashable) -> bool:
        """Whether an owner has live requests."""
        return owner in self._states

    # ------------------------------------------------------------ outputs

    def put(self, state: RequestState) -> None:
        """Keep the output of a request as it is now, in place of an earlier one."""
        output = state.output()
        self._outputs.setdefault(state.owner, {})[state] = output

    def deliver(self, state: RequestState) -> None:
        """A request has ended: keep its output, and know it no more. Done twice, it is the same as once."""
        state.finished()
        self.put(state)
        self.remove(state)

    def take(self, owner: Hashable, delivery: Delivery) -> list[RequestOutput]:
        """The outputs of an owner's requests that no earlier call has returned, in the order in which they came.

        Args:
            owner: of the requests.
            delivery: a new one, for :meth:`give_back` if the outputs do not get to the owner after all.
        """
        if not self.has_outputs(owner):
            return []
        delivery.outputs = dict(self._outputs[owner])
        self._taken[owner] = delivery
        return list(delivery.outputs.values())

    def give_back(self, owner: Hashable, delivery: Delivery) -> None:
        """The outputs of a delivery did not get to the owner: the next call of :meth:`take` returns them again."""
        if self._taken.get(owner) is delivery:
            self._taken.pop(owner, None)

    def has_outputs(self, owner: Hashable) -> bool:
        """Whether outputs of an owner's requests wait to be taken. The owner has got what was taken before."""
        kept, taken = self._outputs.get(owner), self._taken.get(owner)
        if kept is None:
            return False
        if taken is not None:
            for state, output in taken.outputs.items():
                if kept.get(state) is output:
                    del kept[state]
            self._taken.pop(owner, None)  # last: what is interrupted here goes on with the next call
        if not kept:
            self._outputs.pop(owner, None)
        return bool(kept)

    def withdraw(self, state: RequestState) -> RequestOutput:
        """The output of a request as it is now; an earlier one that nobody has taken is dropped."""
        output = state.output()
        self._outputs.get(state.owner, {}).pop(state, None)
        return output


@dataclass(slots=True, eq=False)
class Delivery:
    """What one call of :meth:`LiveRequests.take` gave."""

    outputs: dict[RequestState, RequestOutput] = field(default_factory=dict)
