"""Checks of single values that came from a user. Each returns the value in its plain type, or raises RequestError.

``where`` is the name that the user wrote (``sampling.top_p``); a message shows no more than 200 characters of a value,
on one line, with everything escaped that a terminal would obey. NumPy's scalars count as the numbers that they hold.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from numbers import Integral, Real
from operator import countOf
from typing import Any, NoReturn

from tinyvllm.errors import RequestError

INT32_MAX = 2**31 - 1
_MAX_SHOWN_CHARACTERS = 200
_MAX_SHOWN_BITS = 256  # Python refuses to write integers of more than 4,300 digits, and nobody reads 100


class _Repr(reprlib.Repr):
    """``repr`` that takes no more time for a large value than for a small one, and never raises."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 20
        self.maxlevel = 4
        self.maxstring = self.maxother = _MAX_SHOWN_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > _MAX_SHOWN_BITS:
            return f"{'-' if x < 0 else ''}(a number of about {int(x.bit_length() * math.log10(2)) + 1:,} digits)"
        return repr(x)

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:_MAX_SHOWN_CHARACTERS])

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            return repr(x)
        except Exception:  # whatever a stranger's __repr__ does
            return f"<{type(x).__name__} object>"


_REPR = _Repr()


def shown(value: Any) -> str:
    """``repr(value)`` on one line of at most 200 printable characters, whatever ``value`` is."""
    try:
        text = _REPR.repr(value)
    except Exception:  # a stranger's __len__, __iter__ or __getitem__
        text = f"<{type(value).__name__} object>"
    text = escaped(" ".join(text.split()))
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 3] + "..."


def escaped(text: str) -> str:
    """``text`` with every character that is not printable as ``\\x1b`` or ``\\ud800``; it can be written anywhere."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def refuse(where: str, value: Any, expected: str, remedy: str = "") -> NoReturn:
    """Raise ``<where> must be <expected>, got <value>; <remedy>``."""
    raise RequestError(f"{where} must be {expected}, got {shown(value)}" + (f"; {remedy}" if remedy else ""))


def check_number(
    where: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False, remedy: str = ""
) -> float:
    """A finite float from ``low`` to ``high``; above ``low`` if ``open_low``."""
    # As nearly always; asking an abstract class whether it knows the type takes far longer.
    if type(value) in (float, int) and low <= value <= high < math.inf and not (open_low and value == low):
        return float(value)
    expected = f"a number above {low:g}" if open_low else f"a number from {low:g}"
    if high != math.inf:
        expected += f" and at most {high:g}" if open_low else f" to {high:g}"
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        refuse(where, value, expected, remedy)
    try:
        number = float(value)
    except (OverflowError, ValueError, ZeroDivisionError):
        refuse(where, value, expected, remedy)
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        refuse(where, value, expected, remedy)
    return number


def check_integer(where: str, value: Any, low: int, high: int = INT32_MAX, remedy: str = "") -> int:
    """An int from ``low`` to ``high``; a bool or a float with an integral value is not one."""
    if type(value) is int and low <= value <= high:
        return value
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        refuse(where, value, f"an integer from {low} to {high}", remedy)
    return int(value)


def check_seconds(where: str, value: Any, remedy: str = "") -> float:
    """A float, infinity included, that is not NaN."""
    if type(value) is float and not math.isnan(value):
        return value
    value = _plain(value)
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except (OverflowError, ValueError, ZeroDivisionError):
        number = math.nan
    if math.isnan(number):
        refuse(where, value, "a number of seconds", remedy)
    return number


def check_flag(where: str, value: Any) -> bool:
    """True or False itself, not something truthy."""
    value = _plain(value)
    if not isinstance(value, bool):
        refuse(where, value, "true or false")
    return value


def check_strings(where: str, value: Any, *, max_items: int, max_characters: int) -> tuple[str, ...]:
    """A tuple of distinct, non-empty strings that UTF-8 can hold; a single string stands for itself."""
    strings = (value,) if isinstance(value, str) else _items(where, value, "a string or a list of strings", max_items)
    for i, string in enumerate(strings):
        if not isinstance(string, str) or not 0 < len(string) <= max_characters:
            refuse(f"{where}[{i}]", string, f"a string of 1 to {max_characters} characters")
        if has_lone_surrogate(string):
            refuse(f"{where}[{i}]", string, "text that UTF-8 can hold", "it has half of a surrogate pair; remove that")
    return tuple(dict.fromkeys(map(str, strings)))


def has_lone_surrogate(text: str) -> bool:
    """Whether ``text`` has half of a surrogate pair, as JSON can spell and no encoding can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_token_ids(where: str, value: Any, *, max_items: int) -> tuple[int, ...]:
    """A tuple of token ids (ints from 0), in the order given, repeats kept. Arrays of one dimension are taken."""
    if hasattr(value, "tolist") and math.prod(getattr(value, "shape", ())) <= max_items:
        value = value.tolist()  # an array
    items = _items(where, value, "a list of token ids", max_items)
    # Plain ints in range, as nearly always: three passes in C, because prompts are long.
    if items and countOf(map(type, items), int) == len(items) and min(items) >= 0 and max(items) <= INT32_MAX:
        return items
    for i, item in enumerate(items):
        if type(item) is not int or not 0 <= item <= INT32_MAX:
            check_integer(f"{where}[{i}]", item, 0, remedy="token ids count from 0")
    return tuple(map(int, items))


def check_token_numbers(where: str, value: Any, *, max_items: int, max_size: float) -> dict[int, float]:
    """Token id to number; a decimal string is taken for an id, because JSON has no other keys."""
    if not isinstance(value, Mapping) or len(value) > max_items:
        refuse(where, value, f"a mapping of at most {max_items} token ids to numbers")
    result: dict[int, float] = {}
    for key, number in value.items():
        is_decimal = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 10
        token_id = check_integer(f"{where} key", int(key) if is_decimal else key, 0, remedy="token ids count from 0")
        if token_id in result:
            raise RequestError(f"{where} names token {token_id} twice, as text and as a number; keep one")
        result[token_id] = check_number(f"{where}[{token_id}]", number, -max_size, max_size)
    return result


def _plain(value: Any) -> Any:
    """The number or flag in a scalar of NumPy (or of whoever has ``shape`` and ``item`` as NumPy); others unchanged."""
    is_scalar = hasattr(value, "item") and getattr(value, "shape", None) == ()
    return value.item() if is_scalar else value


def _items(where: str, value: Any, expected: str, max_items: int) -> tuple[Any, ...]:
    is_plain = type(value) is list or type(value) is tuple  # which an abstract class would be long in finding out
    if not is_plain and (not isinstance(value, Iterable) or isinstance(value, (str, bytes, bytearray, Mapping))):
        refuse(where, value, expected)
    try:
        num_items = len(value) if isinstance(value, Sized) else None
        items = tuple(islice(value, max_items + 1))
    except (TypeError, OverflowError):  # an array without dimensions; a range beyond 2**63
        refuse(where, value, expected)
    if len(items) > max_items:
        got = num_items or f"more than {max_items}"
        raise RequestError(f"{where} must have at most {max_items} entries, got {got}; remove some")
    return items
