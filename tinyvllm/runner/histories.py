"""The tokens of running sequences that have rules, by slot: what a sampler of the host reads of earlier steps.

A step names only what is new, so the runner adds the tokens that each step chooses. They may come after the slot was
given to another sequence: a step therefore holds on to the histories that its rows had when it was launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvllm.batch import SamplingRows
from tinyvllm.sequence import SequenceTokens
from tinyvllm.shapes import Int32
from tinyvllm.step import Started


@dataclass(frozen=True, slots=True)
class StepHistories:
    """The histories of the ``S`` sampled rows of one step.

    Attributes:
        tokens: ``S`` of them; None for a row without rules.
        places: of the rows that have a history.
        positions: ``[S]``, int32; position that each new token has in its sequence.
    """

    tokens: Sequence[SequenceTokens | None]
    places: Sequence[int]
    positions: Int32

    def append(self, token_ids: Int32) -> None:
        """Add what the step chose, ``[S]``; nothing where it was added before.

        A history that lacks an earlier token takes none: a step of its sequence has failed, so the sequence has ended.
        """
        for place in self.places:
            history = self.tokens[place]
            if history is not None and history.num_tokens == self.positions[place]:
                history.append(int(token_ids[place]))


class Histories:
    """The newest owner of each slot, if it has rules."""

    def __init__(self) -> None:
        """No sequence has started."""
        self._by_slot: dict[int, SequenceTokens] = {}

    def start(self, started: Started) -> None:
        """Forget who had these slots, and keep the tokens of those sequences that have rules."""
        for slot, each in zip(started.slots.tolist(), started.sequences, strict=True):
            self._by_slot.pop(slot, None)
            if each.params.has_rules:
                self._by_slot[slot] = SequenceTokens.from_tokens(
                    each.token_ids, each.num_prompt_tokens, each.params, each.rules
                )

    def of(self, slots: Int32, rows: SamplingRows) -> StepHistories:
        """The histories of a step's sampled rows.

        Args:
            slots: ``[S]``, slots of their sequences.
            rows: their parameters.
        """
        places: list[int] = rows.has_rules.nonzero()[0].tolist()
        tokens: list[SequenceTokens | None] = [None] * len(slots)
        for place in places:
            tokens[place] = self._by_slot[int(slots[place])]
        return StepHistories(tokens, places, rows.position)
