"""Values from files as they may stand in a message: ASCII without control characters, and short."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from itertools import islice

MAX_SHOWN_CHARACTERS = 80


class _Short(reprlib.Repr):
    """``repr`` that looks at the first few items of a container only, so that a huge value costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxlong = self.maxother = MAX_SHOWN_CHARACTERS
        self.maxlist = self.maxtuple = self.maxdict = 12

    def repr_str(self, x: str, level: int) -> str:
        """The beginning of a text; reprlib's own cuts the middle out."""
        return repr(x[: self.maxstring])

    def repr_int(self, x: int, level: int) -> str:
        """The number; Python refuses to write those of more than 4,300 digits."""
        return repr(x) if x.bit_length() < 10_000 else f"a number of {x.bit_length()} bits"

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        """The first items in their own order; reprlib's own sorts them."""
        if level <= 0:
            return "{...}"
        items = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return "{" + ", ".join(items + ["..."] * (len(x) > self.maxdict)) + "}"


_SHORT = _Short()


def shown(value: object, max_characters: int = MAX_SHOWN_CHARACTERS) -> str:
    """``ascii(value)``, cut after ``max_characters``; what was cut is marked by three dots."""
    text = _SHORT.repr(value).encode("ascii", "backslashreplace").decode("ascii")
    is_cut = len(text) > max_characters or (isinstance(value, str) and len(value) > MAX_SHOWN_CHARACTERS)
    return f"{text[:max_characters]}..." if is_cut else text


def printable(text: str) -> str:
    """The text as it is, or escaped where it would move a terminal's cursor or cannot be encoded."""
    return text if text.isprintable() else ascii(text)[1:-1]


def some(names: Iterable[str], limit: int = 10) -> str:
    """Names for a message: the first few, each as :func:`shown`, then how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(shown(name) for name in listed[:limit]) + more
