"""The frequencies of each type of RoPE. Knows no files: see :mod:`.rotary` for how they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """How angles grow with position.

    Attributes:
        theta: base of the frequencies.
        rope_type: one of ``ROPE_TYPES``.
        factor: how much longer contexts become; of every type but ``default``.
        low_freq_factor, high_freq_factor: of ``llama3``.
        original_max_position_embeddings: the context length before the scaling; of every type that depends on it.
        beta_fast, beta_slow, truncate: of ``yarn``: how many turns over the original length bound the frequencies that
            are between kept and stretched, and whether these bounds are rounded to whole frequencies.
        attention_factor: cosines and sines are multiplied by it; of ``yarn`` and ``longrope``.
        short_factor, long_factor: of ``longrope``: what each frequency is divided by, ``[D / 2]``, in an engine whose
            longest sequence is within the original length, or beyond it.
        rotated_share: the part of a head that is rotated: its first numbers.
    """

    theta: float
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    rotated_share: float = 1.0

    def num_rotated(self, head_dim: int) -> int:
        """How many numbers of a head are rotated."""
        return int(head_dim * self.rotated_share)


def inverse_frequencies(config: RotaryConfig, head_dim: int, max_model_len: int = 1) -> Float64:
    """``[D / 2]`` radians a position.

    Args:
        config: which RoPE.
        head_dim: ``D``.
        max_model_len: longest sequence of the engine. ``dynamic`` and ``longrope`` depend on it: keys of a sequence
            are cached with the frequencies of their time, so frequencies that followed the length of each sequence
            would fit neither its own older keys nor other sequences. Deciding once by the engine's longest sequence is
            what vLLM does.
    """
    return _FREQUENCIES[config.rope_type](config, head_dim, max_model_len)


def mscale_factor(factor: float, mscale: float) -> float:
    """YaRN's attention factor for contexts ``factor`` times as long (Peng et al. 2023, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _plain(theta: float, head_dim: int) -> Float64:
    frequencies: Float64 = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return frequencies


def _default(config: RotaryConfig, head_dim: int, max_model_len: int) -> Float64:
    return _plain(config.theta, head_dim)


def _linear(config: RotaryConfig, head_dim: int, max_model_len: int) -> Float64:
    return _plain(config.theta, head_dim) / config.factor


def _dynamic(config: RotaryConfig, head_dim: int, max_model_len: int) -> Float64:
    """NTK-aware: a larger base, so that the longest sequence is reached; none up to the original length."""
    original = config.original_max_position_embeddings
    length = max(float(max_model_len), original)
    stretch = config.factor * length / original - (config.factor - 1)
    if stretch == 1 or head_dim <= 2:  # a single frequency does not depend on the base
        return _plain(config.theta, head_dim)
    return _plain(config.theta * stretch ** (head_dim / (head_dim - 2)), head_dim)


def _llama3(config: RotaryConfig, head_dim: int, max_model_len: int) -> Float64:
    """The Llama 3.1 release: short wavelengths stay, those longer than ``original / low_freq_factor`` are stretched by
    ``factor``, and in between one goes smoothly over into the other.
    """
    frequencies = _plain(config.theta, head_dim)
    turns = config.original_max_position_embeddings * frequencies / (2 * math.pi)
    share = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    share = np.clip(share, 0.0, 1.0)
    return (1 - share) * frequencies / config.factor + share * frequencies


def _yarn(config: RotaryConfig, head_dim: int, max_model_len: int) -> Float64:
    """YaRN (Peng et al. 2023): frequencies that turn often stay, those that turn rarely are stretched by ``factor``."""

    def index(turns: float) -> float:
        """Which frequency makes so many turns over the original length."""
        ratio = config.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(config.theta))

    low, high = index(config.beta_fast), index(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    stretched_share = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
    frequencies = _plain(config.theta, head_dim)
    mixed: Float64 = frequencies / config.factor * stretched_share + frequencies * (1 - stretched_share)
    return mixed


def _longrope(config: RotaryConfig, head_dim: int, max_model_len: int) -> Float64:
    """LongRoPE (Ding et al. 2024): each frequency has a divisor of its own, found by search."""
    is_long = max_model_len > config.original_max_position_embeddings
    divisors = np.asarray(config.long_factor if is_long else config.short_factor, np.float64)
    return _plain(config.theta, head_dim) / divisors


_FREQUENCIES: Mapping[str, Callable[[RotaryConfig, int, int], Float64]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
ROPE_TYPES = tuple(_FREQUENCIES)
"""Every ``rope_type`` that is served."""
