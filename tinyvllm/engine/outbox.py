"""The deltas that wait for the owners of their requests. None is lost to an exception, and none comes twice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tinyvllm.engine.completion import Completion, UnreadOutput
from tinyvllm.engine.request_state import RequestState
from tinyvllm.outputs import OutputDelta

# By completion, in the order in which they came: what the next delta is made of; for a request that does not stream,
# its one delta, under its first completion.
Unread: TypeAlias = dict[Completion, UnreadOutput | OutputDelta]


@dataclass(slots=True, eq=False)
class Delivery:
    """What one call of :meth:`Outbox.take` returned.

    Attributes:
        unread: what the deltas were made of.
        is_lost: whether the deltas did not get to their owner: the next call returns them again. The caller of ``take``
            sets it where an exception has come on the way out.
    """

    unread: Unread = field(default_factory=dict)
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class _Box:
    """Of one owner. What is in it changes by one assignment, so that no interruption comes between two."""

    unread: Unread = field(default_factory=dict)
    delivery: Delivery | None = None  # of the last call, kept until the owner's next call shows that it has come


class Outbox:
    """Deltas by owner. Those of one completion that nobody has taken yet are one.

    A delta is kept until the call that returned it has returned: the owner's next call drops it.
    """

    def __init__(self) -> None:
        # Of owners who have something to take, or have just taken it, and of None.
        self._boxes: dict[Hashable, _Box] = {}

    def open(self, completion: Completion) -> None:
        """Make ``completion.unread`` what the next delta of the completion is made of.

        Whoever changes the completion calls this first. Nothing if its request does not stream: then everything that it
        produces stays in one record until the end.
        """
        state = completion.request
        if not state.stream:
            return
        box = self._boxes.get(state.owner)
        unread = self._of(state.owner) if box is None else box.unread
        record = unread.get(completion)
        if record is None:
            record = unread[completion] = completion.next_unread()
        assert isinstance(record, UnreadOutput)
        completion.unread = record

    def add_whole(self, state: RequestState) -> None:
        """Keep the one delta of a request that has ended; nothing if the request streams."""
        if not state.stream:
            self._of(state.owner)[state.completions[0]] = state.whole()

    def take(self, owner: Hashable, delivery: Delivery) -> list[OutputDelta]:
        """The deltas of an owner's requests that no earlier call has returned, in the order in which they came.

        Args:
            owner: of the requests.
            delivery: a new one; see :attr:`Delivery.is_lost`.
        """
        box = self._box(owner)
        if box is None or not box.unread:
            return []
        unread = delivery.unread = box.unread
        self._boxes[owner] = _Box({}, delivery)
        return deltas_of(unread)

    def has_unread(self, owner: Hashable) -> bool:
        """Whether deltas wait for an owner. What the owner was given before has come, unless it was lost."""
        box = self._box(owner)
        if box is None:
            return False
        box.delivery = None
        if not box.unread:
            if owner is not None:  # which has its box for good
                self._boxes.pop(owner, None)
            return False
        return True

    def withdraw(self, state: RequestState, withdrawn: Unread) -> list[OutputDelta]:
        """The deltas of one request, which has ended; its owner does not get them from :meth:`take`.

        Args:
            state: the request.
            withdrawn: empty; gets what :meth:`put_back` takes if the caller cannot return the deltas.
        """
        box = self._box(state.owner)
        if box is not None:
            withdrawn.update((each, box.unread[each]) for each in state.completions if each in box.unread)
            box.unread = {each: record for each, record in box.unread.items() if each not in withdrawn}
            if not box.unread and box.delivery is None:
                self._boxes.pop(state.owner, None)
        return deltas_of(withdrawn)

    def put_back(self, owner: Hashable, withdrawn: Unread) -> None:
        """Keep what :meth:`withdraw` took out, or was about to take out."""
        if withdrawn:
            box = self._boxes.setdefault(owner, _Box())
            box.unread = {**withdrawn, **box.unread}

    def _of(self, owner: Hashable) -> Unread:
        box = self._boxes.get(owner)
        if box is None:
            box = self._boxes[owner] = _Box()
        return box.unread

    def _box(self, owner: Hashable) -> _Box | None:
        """The box of an owner, with what was lost in it again; None: there is nothing."""
        box = self._boxes.get(owner)
        if box is not None and box.delivery is not None and box.delivery.is_lost:
            box = self._boxes[owner] = _Box(_followed_by(box.delivery.unread, box.unread))
        return box


def deltas_of(unread: Mapping[Completion, UnreadOutput | OutputDelta]) -> list[OutputDelta]:
    """A delta for each completion that has new tokens or has ended."""
    deltas: list[OutputDelta] = []
    last: dict[RequestState, int] = {}  # the last delta of each request that has ended
    for completion, record in unread.items():
        if isinstance(record, OutputDelta):
            deltas.append(record)
            continue
        finish_reason, state = completion.finish_reason, completion.request
        if not record.token_ids and finish_reason is None:
            continue
        if finish_reason is not None and state.is_finished:
            last[state] = len(deltas)
        # The first completion begins before its siblings, so its first delta is the request's.
        prompt = state.prompt_output() if record.first == 0 and completion.index == 0 else None
        deltas.append(
            OutputDelta(
                state.request_id, completion.index, "".join(record.texts), record.token_ids, record.logprobs,
                finish_reason, completion.stop_reason, prompt, None, None if finish_reason is None else state.error,
            )
        )  # fmt: skip
    for state, place in last.items():
        deltas[place].metrics = state.metrics()
    return deltas


def _followed_by(first: Unread, then: Unread) -> Unread:
    """Both as one; what a completion has in both is joined."""
    joined = {**first, **then}
    for completion, record in first.items():
        later = then.get(completion)
        if isinstance(record, UnreadOutput) and isinstance(later, UnreadOutput):
            joined[completion] = record.followed_by(later)
    return joined
