"""Checks of single values that came from a user. Each returns the value in its plain type, or raises RequestError.

``where`` is the name that the user wrote (``sampling.top_p``); a message shows no more than 200 characters of a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from operator import countOf
from typing import Any, NoReturn

from tinyvllm.errors import RequestError

_SHOWN_CHARACTERS = 200
_INT32_MAX = 2**31 - 1


def shown(value: Any) -> str:
    """``repr(value)``, cut to a length that suits a message."""
    text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, (str, list, tuple)) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


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
    if isinstance(value, bool) or not isinstance(value, Real):
        refuse(where, value, expected, remedy)
    try:
        number = float(value)
    except OverflowError:
        refuse(where, value, expected, remedy)
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        refuse(where, value, expected, remedy)
    return number


def check_integer(where: str, value: Any, low: int, high: int = _INT32_MAX, remedy: str = "") -> int:
    """An int from ``low`` to ``high``; a bool or a float with an integral value is not one."""
    if type(value) is int and low <= value <= high:
        return value
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        refuse(where, value, f"an integer from {low} to {high}", remedy)
    return int(value)


def check_flag(where: str, value: Any) -> bool:
    """True or False itself, not something truthy."""
    if not isinstance(value, bool):
        refuse(where, value, "true or false")
    return value


def check_strings(where: str, value: Any, *, most: int, most_characters: int) -> tuple[str, ...]:
    """A tuple of distinct, non-empty strings; a single string stands for itself."""
    strings = (value,) if isinstance(value, str) else _items(where, value, "a string or a list of strings", most)
    for i, string in enumerate(strings):
        if not isinstance(string, str) or not 0 < len(string) <= most_characters:
            refuse(f"{where}[{i}]", string, f"a string of 1 to {most_characters} characters")
    return tuple(dict.fromkeys(strings))


def check_token_ids(where: str, value: Any, *, most: int) -> tuple[int, ...]:
    """A tuple of token ids (ints from 0), in the order given, repeats kept."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # an array
    items = _items(where, value, "a list of token ids", most)
    # Plain ints in range, as nearly always: three passes in C, because prompts are long.
    if items and countOf(map(type, items), int) == len(items) and min(items) >= 0 and max(items) <= _INT32_MAX:
        return items
    for i, item in enumerate(items):
        if type(item) is not int or not 0 <= item <= _INT32_MAX:
            check_integer(f"{where}[{i}]", item, 0, remedy="token ids count from 0")
    return tuple(map(int, items))


def check_token_numbers(where: str, value: Any, *, most: int, largest: float) -> dict[int, float]:
    """Token id to number; a decimal string is taken for an id, because JSON has no other keys."""
    if not isinstance(value, Mapping) or len(value) > most:
        refuse(where, value, f"a mapping of at most {most} token ids to numbers")
    result = {}
    for key, number in value.items():
        is_decimal = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 10
        token_id = check_integer(f"{where} key", int(key) if is_decimal else key, 0, remedy="token ids count from 0")
        result[token_id] = check_number(f"{where}[{token_id}]", number, -largest, largest)
    return result


def _items(where: str, value: Any, expected: str, most: int) -> tuple[Any, ...]:
    is_plain = type(value) is list or type(value) is tuple  # which an abstract class would be long in finding out
    if not is_plain and (not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping))):
        refuse(where, value, expected)
    items = tuple(value)
    if len(items) > most:
        raise RequestError(f"{where} must have at most {most} entries, got {len(items)}; remove some")
    return items
