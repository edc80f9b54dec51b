"""The requests of an engine that have not ended."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from tinyvllm.engine.completion import Completion
from tinyvllm.engine.request_state import RequestState


class LiveRequests:
    """Requests by owner and id."""

    def __init__(self) -> None:
        # An owner has an entry while there are requests: each change is one operation, or an interruption between two
        # would leave an owner without requests, and with something to wait for.
        self._states: dict[Hashable, dict[str, RequestState]] = {}

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
        """The request of that id; None if there is none, or ``request_id`` is no string."""
        return self._states.get(owner, {}).get(request_id) if isinstance(request_id, str) else None

    def add(self, state: RequestState) -> None:
        """Keep a request."""
        states = self._states.get(state.owner)
        if states is None:
            self._states[state.owner] = {state.request_id: state}
        else:
            states[state.request_id] = state

    def remove(self, state: RequestState) -> None:
        """Forget a request; nothing if it is not kept."""
        states = self._states.get(state.owner, {})
        if states.get(state.request_id) is state:
            if len(states) == 1:
                del self._states[state.owner]
            else:
                del states[state.request_id]

    def has_any(self, owner: Hashable) -> bool:
        """Whether an owner has live requests."""
        return owner in self._states
