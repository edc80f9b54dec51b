"""The frequencies of the rotary embedding: ``default``, ``linear`` and ``llama3``, in both config spellings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Float32
from tinyvllm.models.config_reader import ConfigReader

ROPE_TYPES = ("default", "linear", "llama3")
_DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """How angles grow with position.

    Attributes:
        theta: base of the frequencies.
        rope_type: ``default``, ``linear`` or ``llama3``.
        factor: how much longer contexts become (``linear``, ``llama3``).
        low_freq_factor, high_freq_factor, original_max_position_embeddings: of ``llama3``.
    """

    theta: float
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192.0


def read_rotary(reader: ConfigReader) -> RotaryConfig:
    """The rotary part of a ``config.json``: ``rope_parameters``, or ``rope_theta`` with ``rope_scaling``.

    Raises:
        LoadError: a rope type that is not implemented, or one of its numbers missing or wrong.
    """
    # Where a file has both, rope_scaling wins, as in transformers 5.
    key = "rope_parameters" if reader.mapping("rope_scaling") is None else "rope_scaling"
    source: Mapping[str, Any] = reader.mapping(key) or {}
    rope_type = source.get("rope_type", source.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise reader.unsupported(f"{key}.rope_type", rope_type, f"supported are {', '.join(ROPE_TYPES)}")
    if source.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise reader.unsupported(f"{key}.partial_rotary_factor", source["partial_rotary_factor"], "use 1.0")
    theta = reader.number("rope_theta", reader.number("rope_theta", _DEFAULT_THETA), source)
    if rope_type == "default":
        return RotaryConfig(theta)
    factor = reader.number("factor", None, source)
    if rope_type == "linear":
        return RotaryConfig(theta, rope_type, factor)
    return RotaryConfig(
        theta,
        rope_type,
        factor,
        reader.number("low_freq_factor", None, source),
        reader.number("high_freq_factor", None, source),
        reader.number("original_max_position_embeddings", None, source),
    )


def inverse_frequencies(config: RotaryConfig, head_dim: int) -> NDArray[np.float64]:
    """``[D / 2]`` radians a position.

    ``llama3`` (the Llama 3.1 release) leaves short wavelengths alone, stretches those longer than
    ``original / low_freq_factor`` by ``factor``, and goes smoothly from one to the other in between.
    """
    frequencies = config.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if config.rope_type == "default":
        return frequencies
    stretched = frequencies / config.factor
    if config.rope_type == "linear":
        return stretched
    turns = config.original_max_position_embeddings * frequencies / (2 * math.pi)
    share = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    share = np.clip(share, 0.0, 1.0)
    return (1 - share) * stretched + share * frequencies


def rotary_table(config: RotaryConfig, head_dim: int, max_model_len: int) -> tuple[Float32, Float32]:
    """Cosines and sines of every position, ``[max_model_len, D / 2]`` each.

    The angle is rounded to float32 before the cosine, as the models were trained.
    """
    frequencies = inverse_frequencies(config, head_dim).astype(np.float32)
    angles = np.arange(max_model_len, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)
