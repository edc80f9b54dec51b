"""The rotary embedding of a model: read from ``config.json`` in both spellings, and tabulated by position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm._shown import shown
from tinyvllm.errors import LoadError
from tinyvllm.models.config_reader import MAX_NUMBER, MAX_POSITIONS, ConfigReader
from tinyvllm.models.rope_types import ROPE_TYPES, RotaryConfig, inverse_frequencies, mscale_factor
from tinyvllm.shapes import Float32

__all__ = [
    "ROPE_TYPES",
    "RopeDefaults",
    "RotaryConfig",
    "inverse_frequencies",
    "longest_context",
    "order_of_halves",
    "read_rotary",
    "rotary_table",
    "rotary_within",
]

_MIN_FACTOR, _MAX_FACTOR = 1e-6, 1e6
# What may stand in the mapping: keys of any type, of which a type that has no use for them takes no notice, as in
# transformers; and keys of other engines with the values that change nothing.
_KEYS = frozenset(
    {
        "type", "rope_type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
        "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "short_factor",
        "long_factor", "short_mscale", "long_mscale", "low_freq_factor", "high_freq_factor",
        "max_position_embeddings", "mrope_section", "finetuned",
    }
)  # fmt: skip
_HARMLESS = {"extrapolation_factor": (None, 1), "attn_factor": (None, 1)}


@dataclass(frozen=True, slots=True)
class RopeDefaults:
    """What a family takes where a file says nothing of its RoPE, and what it serves.

    Attributes:
        theta: base of the frequencies.
        original_max_position_embeddings: the length before the scaling; None: ``max_position_embeddings``.
        types: the RoPE types of the family.
        may_be_partial: whether a head may be rotated in part.
        rotated_share: the part of a head that is rotated.
    """

    theta: float = 10000.0
    original_max_position_embeddings: int | None = None
    types: Sequence[str] = ROPE_TYPES
    may_be_partial: bool = False
    rotated_share: float = 1.0


# Positions tabulated at a time, so that float32 angles are held for a few of them only.
_CHUNK = 2**14


def read_rotary(reader: ConfigReader, head_dim: int, max_position_embeddings: int, rope: RopeDefaults) -> RotaryConfig:
    """The rotary part of a ``config.json``: ``rope_parameters``, or ``rope_theta`` with ``rope_scaling``.

    Args:
        reader: the file.
        head_dim: ``D``; LongRoPE has a factor for each of the ``D / 2`` frequencies.
        max_position_embeddings: as the file says, or its default.
        rope: what the family takes where a key is absent, and what it serves.
    Raises:
        LoadError: a rope type that is not implemented, or one of its numbers missing or wrong.
    """
    # Where a file has both, rope_scaling wins if there is something in it, as in transformers 5.
    in_scaling, in_parameters = reader.mapping("rope_scaling"), reader.mapping("rope_parameters")
    key, source = ("rope_scaling", in_scaling) if in_scaling else ("rope_parameters", in_parameters or {})
    reader.ignore("original_max_position_embeddings")  # stands beside a scaling, which may have no use for it
    has_theta = reader.has("rope_theta") and "rope_theta" not in source
    theta = reader.number("rope_theta", minimum=1) if has_theta else rope.theta
    return rotary_within(reader, key, source, head_dim, max_position_embeddings, replace(rope, theta=theta))


def rotary_within(
    reader: ConfigReader,
    key: str,
    source: Mapping[str, Any],
    head_dim: int,
    max_position_embeddings: int,
    rope: RopeDefaults,
) -> RotaryConfig:
    """The RoPE that one mapping of a ``config.json`` describes; see :func:`read_rotary`.

    Args:
        reader: the file.
        key: where the mapping stands in it, for messages.
        source: the mapping.
        head_dim, max_position_embeddings, rope: as of :func:`read_rotary`.
    """
    if any(isinstance(value, dict) for value in source.values()):
        raise reader.unsupported(key, source, "a model with another RoPE in some of its layers is not served")
    for name, value in source.items():
        if name not in _KEYS and value not in _HARMLESS.get(name, (None,)):
            raise reader.unsupported(f"{key}.{shown(name)}", value, "a model that needs it is not served")
    if "factor" in source and not {"rope_type", "type"} & source.keys():
        raise LoadError(f"{reader.where}: {key} has a factor and no rope_type; expected one of {', '.join(ROPE_TYPES)}")
    rope_type = source.get("rope_type", source.get("type", "default"))
    if rope_type not in rope.types:
        raise reader.unsupported(f"{key}.rope_type", rope_type, f"supported are {', '.join(rope.types)}")
    partial = source.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0) and not rope.may_be_partial:
        raise reader.unsupported(f"{key}.partial_rotary_factor", partial, "a model that needs it is not served")
    share = rope.rotated_share
    if partial is not None:
        share = reader.number("partial_rotary_factor", within=(key, source), maximum=1)
    theta = rope.theta
    if "rope_theta" in source:
        theta = reader.number("rope_theta", within=(key, source), minimum=1)
    rotated = RotaryConfig(theta, rotated_share=share).num_rotated(head_dim)
    if rotated < 2 or rotated % 2:
        raise reader.unsupported(f"{key}.partial_rotary_factor", share, f"it rotates {rotated} of {head_dim} numbers")
    read = _READERS[rope_type](_Source(reader, key, source, rotated, max_position_embeddings, rope), theta)
    return replace(read, rotated_share=share)


def longest_context(config: RotaryConfig, max_position_embeddings: int) -> int:
    """How long a sequence may get: RoPE that is stretched by a factor reaches as many times further.

    The rule is vLLM's: ``linear`` and ``dynamic`` start from ``max_position_embeddings``, ``yarn`` from the length
    before its scaling; for ``llama3`` and ``longrope`` the file states the length after it.
    """
    if config.rope_type in ("linear", "dynamic"):
        return max(max_position_embeddings, int(max_position_embeddings * config.factor))
    if config.rope_type == "yarn":
        return max(1, int(config.original_max_position_embeddings * max(1.0, config.factor)))
    return max_position_embeddings


def rotary_table(
    config: RotaryConfig | None, head_dim: int, max_model_len: int, num_positions: int | None = None
) -> tuple[Float32, Float32]:
    """Cosines and sines of positions, ``[num_positions, D / 2]`` each, times the attention factor of the RoPE.

    The angle is rounded to float32 before the cosine, as the models were trained. Pairs that are not rotated have the
    cosine 1 and the sine 0.

    Args:
        config: which RoPE; None: no pair is rotated.
        head_dim: ``D``.
        max_model_len: longest sequence of the engine, which some types of RoPE depend on.
        num_positions: how many positions are tabulated, from 0; None: ``max_model_len``.
    """
    count = max_model_len if num_positions is None else num_positions
    cos, sin = np.ones((count, head_dim // 2), np.float32), np.zeros((count, head_dim // 2), np.float32)
    if config is None:
        return cos, sin
    rotated = config.num_rotated(head_dim)
    frequencies = inverse_frequencies(config, rotated, max_model_len).astype(np.float32)
    pairs = slice(rotated // 2)
    for start in range(0, count, _CHUNK):
        rows = slice(start, min(start + _CHUNK, count))
        angles = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] * frequencies
        np.cos(angles, out=cos[rows, pairs])
        np.sin(angles, out=sin[rows, pairs])
    if config.attention_factor != 1.0:
        cos[:, pairs] *= np.float32(config.attention_factor)
        sin[:, pairs] *= np.float32(config.attention_factor)
    return cos, sin


def order_of_halves(head_dim: int, num_rotated: int) -> NDArray[np.intp]:
    """Where the numbers of a head must come from so that its pairs are ``(i, i + D / 2)`` though only some are rotated.

    A checkpoint that rotates the first ``R`` of ``D`` numbers pairs ``(i, i + R / 2)``. The same order for queries and
    keys leaves their products as they are.

    Args:
        head_dim: ``D``.
        num_rotated: ``R``, even.
    Returns:
        ``[D]``: number ``j`` of the head is number ``order[j]`` of the checkpoint's.
    """
    half, rest = num_rotated // 2, (head_dim - num_rotated) // 2
    low = [*range(half), *range(num_rotated, num_rotated + rest)]
    high = [*range(half, num_rotated), *range(num_rotated + rest, head_dim)]
    return np.array([*low, *high], np.intp)


class _Source:
    """The mapping that describes a RoPE, with what the file around it says."""

    def __init__(
        self,
        reader: ConfigReader,
        key: str,
        values: Mapping[str, Any],
        num_rotated: int,
        max_position_embeddings: int,
        rope: RopeDefaults,
    ) -> None:
        self.reader, self.key, self.values, self.rope = reader, key, values, rope
        self.num_rotated, self.max_position_embeddings = num_rotated, max_position_embeddings

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; absent: the default, if there is one."""
        return self.reader.number(name, default, within=(self.key, self.values))

    def factor(self) -> float:
        """``factor``, which must be there."""
        return self.reader.number("factor", within=(self.key, self.values), minimum=_MIN_FACTOR, maximum=_MAX_FACTOR)

    def optional(self, name: str) -> float | None:
        """A positive number; None where it is absent or null."""
        return None if self.values.get(name) is None else self.number(name)

    def original(self) -> float:
        """``original_max_position_embeddings``: of the file itself, else of the RoPE, else the family's."""
        name = "original_max_position_embeddings"
        beside = self.reader.get(name)
        if beside is None and name not in self.values:
            return float(self.rope.original_max_position_embeddings or self.max_position_embeddings)
        found = self.values[name] if beside is None else beside
        value = self.reader.positive(found)
        if value is None or not 1 <= value <= MAX_POSITIONS:
            where = f"{self.key}.{name}" if beside is None else name
            raise self.reader.wrong(where, found, f"a number from 1 to {MAX_POSITIONS}")
        return value

    def factor_or_ratio(self) -> float:
        """``factor``; null: how much longer the file's maximum is than the original length."""
        if self.values.get("factor") is not None:
            return self.factor()
        return self.max_position_embeddings / self.original()

    def factors(self, name: str) -> tuple[float, ...]:
        """A list of ``D / 2`` positive numbers."""
        values, expected = self.values.get(name), f"a list of {self.num_rotated // 2} positive numbers"
        if not isinstance(values, list) or len(values) != self.num_rotated // 2:
            count = f"a list of {len(values)}" if isinstance(values, list) else None
            where = f"{self.reader.where}: {self.key}.{name}"
            if count is not None:
                raise LoadError(f"{where} must be {expected}, half of head_dim, got {count}")
            raise self.reader.wrong(f"{self.key}.{name}", values, expected)
        numbers = [self.reader.positive(value) for value in values]
        for value, number in zip(values, numbers, strict=True):
            if number is None or not 1 / MAX_NUMBER <= number <= MAX_NUMBER:
                raise self.reader.wrong(f"{self.key}.{name}", value, expected)
        return tuple(number for number in numbers if number is not None)


def _default(source: _Source, theta: float) -> RotaryConfig:
    return RotaryConfig(theta)


def _linear(source: _Source, theta: float) -> RotaryConfig:
    return RotaryConfig(theta, "linear", source.factor())


def _dynamic(source: _Source, theta: float) -> RotaryConfig:
    # transformers takes max_position_embeddings, whatever original length is named beside it.
    original = float(source.max_position_embeddings)
    return RotaryConfig(theta, "dynamic", source.factor(), original_max_position_embeddings=original)


def _llama3(source: _Source, theta: float) -> RotaryConfig:
    low, high = source.number("low_freq_factor"), source.number("high_freq_factor")
    if low >= high:
        raise source.reader.wrong(f"{source.key}.high_freq_factor", high, f"above low_freq_factor, which is {low:g}")
    return RotaryConfig(theta, "llama3", source.factor(), low, high, source.original())


def _yarn(source: _Source, theta: float) -> RotaryConfig:
    if "factor" not in source.values:
        source.factor()  # says that it is missing
    if theta <= 1:
        raise source.reader.wrong("rope_theta", theta, "above 1 for YaRN")
    factor = source.factor_or_ratio()
    attention_factor = source.optional("attention_factor")
    if attention_factor is None:
        # A zero counts as absent for these two, as in transformers.
        mscale, all_dim = (
            source.number(name) if source.values.get(name) else None for name in ("mscale", "mscale_all_dim")
        )
        attention_factor = mscale_factor(factor, 1.0)
        if mscale is not None and all_dim is not None:
            attention_factor = mscale_factor(factor, mscale) / mscale_factor(factor, all_dim)
    truncate = source.values.get("truncate", True)
    if truncate is not None and not isinstance(truncate, bool):
        raise source.reader.wrong(f"{source.key}.truncate", truncate, "true or false")
    return RotaryConfig(
        theta,
        "yarn",
        factor,
        original_max_position_embeddings=source.original(),
        # A zero or null counts as absent, as in transformers.
        beta_fast=source.number("beta_fast") if source.values.get("beta_fast") else 32.0,
        beta_slow=source.number("beta_slow") if source.values.get("beta_slow") else 1.0,
        truncate=bool(truncate),
        attention_factor=attention_factor,
    )


def _longrope(source: _Source, theta: float) -> RotaryConfig:
    for name in ("short_mscale", "long_mscale"):
        if source.values.get(name) is not None:
            raise source.reader.unsupported(
                f"{source.key}.{name}", source.values[name], "a model that needs it is not served"
            )
    original, factor = source.original(), source.factor_or_ratio()
    attention_factor = source.optional("attention_factor")
    if attention_factor is None:
        is_longer = factor > 1 and original > 1
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if is_longer else 1.0
    return RotaryConfig(
        theta,
        "longrope",
        factor,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
        short_factor=source.factors("short_factor"),
        long_factor=source.factors("long_factor"),
    )


_READERS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
assert tuple(_READERS) == ROPE_TYPES
