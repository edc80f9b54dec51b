"""Typed, strict reading of ``config.json``: what is missing, mistyped, out of bounds or unsupported is named.

A key that is absent, one that is null and one that is zero are three things. Each reading says what the first two mean
for it; where nothing is said, absent and null are errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tinyvllm._shown import shown
from tinyvllm.errors import LoadError

MAX_SIZE = 2**40
"""Of a dimension. Whether weights of such sizes fit is asked elsewhere; beyond it a size is no size."""
MAX_LAYERS = 2_000
MAX_POSITIONS = 2**31 - 1
MAX_NUMBER = 1e15
"""Of anything that is no size: far beyond every base and factor, far below what float32 arithmetic could lose."""

# Values that change what a model computes and that no model here implements, with the values that change nothing, and
# what to do: never "leave it out" where the weights were trained with it.
_OTHER_MODEL = "a model that needs it is not served"
_UNSUPPORTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "quantization_config": ((None,), "quantized weights are not served; use the checkpoint that they were made from"),
    "compression_config": ((None,), "quantized weights are not served; use the checkpoint that they were made from"),
    "quantization": ((None,), "quantized weights are not served; use the checkpoint that they were made from"),
    "rope_interleaved": ((None, False), _OTHER_MODEL),
    "rope_interleave": ((None, False), _OTHER_MODEL),
    "partial_rotary_factor": ((None, 1, 1.0), _OTHER_MODEL),
    "hidden_act": ((None, "silu", "swish"), 'a model with another activation than "silu" is not served'),
    "is_encoder_decoder": ((None, False), _OTHER_MODEL),
    "add_cross_attention": ((None, False), _OTHER_MODEL),
    "attn_logit_softcapping": ((None,), _OTHER_MODEL),
    "final_logit_softcapping": ((None,), _OTHER_MODEL),
    "attention_multiplier": ((None,), _OTHER_MODEL),
    "embedding_multiplier": ((None, 1, 1.0), _OTHER_MODEL),
    "residual_multiplier": ((None, 1, 1.0), _OTHER_MODEL),
    "logits_scaling": ((None, 1, 1.0), _OTHER_MODEL),
    "logit_scale": ((None, 1, 1.0), _OTHER_MODEL),
    "attention_chunk_size": ((None,), _OTHER_MODEL),
    "clip_qkv": ((None,), _OTHER_MODEL),
    "use_qk_norm": ((None, False), _OTHER_MODEL),
    "num_local_experts": ((None, 0, 1), _OTHER_MODEL),
    "num_experts": ((None, 0, 1), _OTHER_MODEL),
    "use_dual_chunk_attention": ((None, False), _OTHER_MODEL),
    "dual_chunk_attention_config": ((None,), _OTHER_MODEL),
    "no_rope_layers": ((None,), _OTHER_MODEL),
}


class ConfigReader:
    """Reads values of one ``config.json``.

    Raises:
        LoadError: at once, if a value is not supported by any model.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where
        for key, (harmless, remedy) in _UNSUPPORTED.items():
            if raw.get(key) not in harmless:
                raise self.unsupported(key, raw[key], remedy)

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
        if key not in self.raw:
            if default is None:
                raise LoadError(f"{self.where}: {key} is missing; expected a whole number")
            return default
        value = self.raw[key]
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
        source: str | None = None,
        minimum: float = 0.0,
        maximum: float = MAX_NUMBER,
    ) -> float:
        """A positive finite number.

        Args:
            key: its name.
            default: where the key is absent; None: that is an error.
            source: the key of the mapping that holds it; None: the file itself.
            minimum, maximum: bounds of a value that is there.
        """
        holder, name = (self.raw, key) if source is None else (self.raw[source], f"{source}.{key}")
        if key not in holder:
            if default is None:
                raise LoadError(f"{self.where}: {name} is missing; expected a number")
            return default
        value = self.positive(holder[key])
        if value is None:
            raise self.wrong(name, holder[key], "a positive number", default)
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
        value = self.raw.get(key, default)
        if value is None and not default:
            return False
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false", default)
        return value

    def mapping(self, key: str) -> Mapping[str, Any] | None:
        """A mapping; None if absent or null."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, value, "a mapping")
        return value

    def must_be_off(self, *keys: str) -> None:
        """Return if each key is absent, null or false: other engines obey it, and this family has no such thing."""
        for key in keys:
            if self.raw.get(key) not in (None, False):
                raise self.unsupported(key, self.raw[key], f"the model {self.raw['model_type']!r} has no such thing")


def as_json(value: object) -> str:
    """A value from a file as it may stand in a message, in JSON's words for null, true and false."""
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)
