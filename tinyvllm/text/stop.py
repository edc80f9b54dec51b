"""Stop strings in text that arrives in pieces. Knows nothing about tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Released(NamedTuple):
    """What may be shown.

    Attributes:
        text: new text, which no stop string can reach any more.
        stop: the stop string that ended the text; None while it goes on.
    """

    text: str
    stop: str | None = None


class StopChecker:
    """Looks for stop strings in a text however it is cut into pieces, and holds back what may become one.

    The stop string that is complete first ends the text; of several complete at the same character, the longest.
    (vLLM looks once a token, in the order of the list, so its answer depends on where tokens begin.) The text then
    ends before the stop string, or after it with ``include_stop_str_in_output``; in that case nothing needs to be
    held back. Every character is looked at once (Knuth, Morris and Pratt 1977), so repetitive text costs no more.
    """

    __slots__ = ("_first_characters", "_held", "_includes_stop", "_is_idle", "_matchers")

    def __init__(self, stops: Sequence[str], *, include_stop_str_in_output: bool = False) -> None:
        """Look for ``stops``, none of them empty."""
        assert all(stops)
        self._matchers = [_Matcher(stop) for stop in dict.fromkeys(stops)]
        self._includes_stop = include_stop_str_in_output
        self._first_characters = frozenset(stop[0] for stop in stops)
        self._held = ""
        self._is_idle = True  # the text does not end with the beginning of a stop string

    def push(self, text: str, *, can_stop: bool = True) -> Released:
        """Take the next piece of text, and return what may be shown.

        Args:
            text: any length, also empty.
            can_stop: False before ``min_tokens``: a stop string that would be complete in this piece is not one, but
                one that begins in it may be complete in a later piece.
        """
        if self._is_idle and self._first_characters.isdisjoint(text):
            return Released(text)
        seen = self._held + text
        for i, character in enumerate(text, start=len(self._held) + 1):
            stop = self._advance(character)
            if stop is not None and can_stop:
                self._held = ""
                # Every possible beginning of a stop string was held, so this one begins in ``seen``. Where the stop
                # string is included nothing is held, and all of ``seen`` is new.
                return Released(seen[: i if self._includes_stop else i - len(stop)], stop)
        num_matched = max(matcher.num_matched for matcher in self._matchers)
        self._is_idle = num_matched == 0
        cut = len(seen) - (0 if self._includes_stop else num_matched)
        self._held = seen[cut:]
        return Released(seen[:cut])

    def flush(self) -> str:
        """The text held back, now that no more follows."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """The longest stop string that ends with this character."""
        longest: str | None = None
        for matcher in self._matchers:
            if matcher.advance(character) and (longest is None or len(matcher.stop) > len(longest)):
                longest = matcher.stop
        return longest


class _Matcher:
    """How much of one stop string the text ends with.

    ``_borders[n]``: the longest proper prefix of the first ``n`` characters that they also end with::

        stop     a b a b c
        borders  0 0 0 1 2 0
    """

    __slots__ = ("_borders", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0  # always less than the whole
        self._borders = [0] * (len(stop) + 1)
        for n in range(2, len(stop) + 1):
            border = self._borders[n - 1]
            while border and stop[border] != stop[n - 1]:
                border = self._borders[border]
            self._borders[n] = border + (stop[border] == stop[n - 1])

    def advance(self, character: str) -> bool:
        """Whether the text ends with the stop string once ``character`` is appended."""
        matched = self.num_matched
        while matched and self.stop[matched] != character:
            matched = self._borders[matched]
        matched += self.stop[matched] == character
        is_complete = matched == len(self.stop)
        self.num_matched = self._borders[matched] if is_complete else matched
        return is_complete
