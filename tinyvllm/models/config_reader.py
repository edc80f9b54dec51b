"""Typed, strict reading of ``config.json``: what is missing, mistyped, out of bounds or unsupported is named.

A key that is absent, one that is null and one that is zero are three things. Each reading says what the first two mean
for it; where nothing is said, absent and null are errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinyvllm._shown import shown
from tinyvllm.errors import LoadError
from tinyvllm.models.harmless_keys import REMEDIES, changes_nothing

MAX_SIZE = 2**40
"""Of a dimension. Whether weights of such sizes fit is asked elsewhere; beyond it a size is no size."""
MAX_LAYERS = 2_000
MAX_POSITIONS = 2**31 - 1
MAX_NUMBER = 1e15
"""Of anything that is no size: far beyond every base and factor, far below what float32 arithmetic could lose."""


class ConfigReader:
    """Reads values of one ``config.json``, and takes note of which keys were read.

    Args:
        raw: the parsed file.
        where: its name, for error messages.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self._raw = raw
        self._read: set[str] = set()
        self.where = where

    def get(self, key: str, default: object = None) -> Any:
        """The value as it is; absent: the default."""
        self._read.add(key)
        return self._raw.get(key, default)

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        self._read.add(key)
        return key in self._raw

    def ignore(self, *keys: str) -> None:
        """Take no notice of keys, as the family's own configuration class does."""
        self._read.update(keys)

    def check_all_read(self, model_type: str) -> None:
        """Return if every key was read, or changes nothing.

        Args:
            model_type: the family that read them, for the message.
        Raises:
            LoadError: a key that may change the result was not, naming the family.
        """
        for key, value in self._raw.items():
            if key not in self._read and not changes_nothing(key, value):
                name = key if key.isidentifier() and key.isascii() and len(key) < 80 else shown(key)
                remedy = REMEDIES.get(
                    key, f"the family {model_type} has no such key, and a model that needs it is not served"
                )
                raise self.unsupported(name, value, remedy)

    def unsupported(self, key: str, value: object, remedy: str) -> LoadError:
        """The error for a value that would change the result and is not implemented."""
        return LoadError(f"{self.where}: {key} = {as_json(value)} is not supported; {remedy}")

    def wrong(self, key: str, value: object, expected: str, default: object = None) -> LoadError:
        """The error for a value that is not what it must be; says so where the key may be absent."""
        absent = "" if default is None else f"; leave it out for {as_json(default)}"
        return LoadError(f"{self.where}: {key} must be {expected}, got {as_json(value)}{absent}")

    def integer(
        self,
        key: str,
        default: int | None = None,
        *,
        null: int | None = None,
        minimum: int = 1,
        maximum: int = MAX_SIZE,
    ) -> int:
        """A whole number from ``minimum`` to ``maximum``.

        Args:
            key: its name.
            default: where the key is absent; None: that is an error.
            null: where the value is null; None: that is an error.
            minimum, maximum: bounds of a value that is there.
        """
        if not self.has(key):
            if default is None:
                raise LoadError(f"{self.where}: {key} is missing; expected a whole number")
            return default
        value = self.get(key)
        if value is None and null is not None:
            return null
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(key, value, "a whole number", default)
        if value < minimum:
            raise self.wrong(key, value, f"a whole number of at least {minimum}", default)
        if value > maximum:
            raise self.wrong(key, value, f"a whole number of at most {maximum}", default)
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        within: tuple[str, Mapping[str, Any]] | None = None,
        minimum: float = 0.0,
        maximum: float = MAX_NUMBER,
    ) -> float:
        """A positive finite number.

        Args:
            key: its name.
            default: where the key is absent; None: that is an error.
            within: name and values of the mapping that holds it; None: the file itself.
            minimum, maximum: bounds of a value that is there.
        """
        if within is None:
            is_there, found, name = self.has(key), self.get(key), key
        else:
            is_there, found, name = key in within[1], within[1].get(key), f"{within[0]}.{key}"
        if not is_there:
            if default is None:
                raise LoadError(f"{self.where}: {name} is missing; expected a number")
            return default
        value = self.positive(found)
        if value is None:
            raise self.wrong(name, found, "a positive number", default)
        if not minimum <= value <= maximum:
            raise self.wrong(name, value, f"a number from {minimum:g} to {maximum:g}", default)
        return value

    @staticmethod
    def positive(value: object) -> float | None:
        """The value as a float if it is a positive finite number, else None."""
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return None
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            return None
        return number if 0 < number < math.inf else None

    def flag(self, key: str, default: bool) -> bool:
        """True or false; absent: the default. Null is false, as in Python, where that is the default as well."""
        value = self.get(key, default)
        if value is None and not default:
            return False
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false", default)
        return value

    def mapping(self, key: str) -> Mapping[str, Any] | None:
        """A mapping; None if absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, value, "a mapping")
        return value

    def activation(self, key: str, served: Sequence[str]) -> None:
        """Return if the activation is absent, null or one of the names of what the family computes."""
        value = self.get(key)
        if value is not None and value not in served:
            raise self.unsupported(key, value, f'a model with another activation than "{served[0]}" is not served')


def as_json(value: object) -> str:
    """A value from a file as it may stand in a message, in JSON's words for null, true and false."""
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)
