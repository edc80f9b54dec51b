"""Philox on the device: the reference's words and uniforms bit for bit, Gumbel numbers to a few units, safe bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Argument, Array, Gpu
from tinyvllm.reference.philox import GUMBEL_RANGE, random_words, uniform

from .support import F32_ROUNDOFF, Float64, get, poisoned, put

SOURCE = Path(__file__).with_name("philox_words.cu")


def exact_gumbel(u: Array) -> Float64:
    result: Float64 = -np.log(-np.log1p(-u.astype(np.float64)))
    return result


def check_numbers(u: Array, g: Array, at_least: Array, at_most: Array) -> None:
    expected = exact_gumbel(u)
    # log1p is right to 2 ulp of e, which is an absolute error of log e; then log is right to 2 ulp of g.
    np.testing.assert_array_less(np.abs(g - expected), 8 * F32_ROUNDOFF * (1 + np.abs(expected)))
    assert (at_least <= g).all()
    assert (at_most >= g).all()
    u = u.astype(np.float64)
    with np.errstate(divide="ignore"):
        apart = np.log(u / (u - 2.0**-33)) - np.log1p(-u)  # between -log(word / 2^32) and log(1 / u - 1)
    assert ((at_most - at_least <= apart + 1e-3) | (at_least == np.float32(GUMBEL_RANGE[0]))).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**64 - 1), st.integers(0, 63), st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 5, 127, 128, 700])
)
def test_words_and_uniforms_have_the_references_bits(
    device: Gpu, seed: int, completion: int, position: int, vocab_size: int
) -> None:
    kinds: list[Any] = [np.uint32] + [np.float32] * 4
    outputs = [poisoned(device, (vocab_size,), kind) for kind in kinds]
    scalars: list[Argument] = [np.uint64(seed), np.int32(completion), np.int32(position), np.int32(vocab_size)]
    function = device.compile(SOURCE).function("philox_words")
    device.launch(function, (-(-vocab_size // 128), 1, 1), (128, 1, 1), [*outputs, *scalars])
    words, u, g, at_least, at_most = (get(device, out) for out in outputs)
    stream = np.array([seed], np.uint64), np.array([completion], np.int32), np.array([position], np.int32)
    np.testing.assert_array_equal(words, random_words(*stream, vocab_size)[0])
    np.testing.assert_array_equal(u.view(np.uint32), uniform(*stream, vocab_size)[0].view(np.uint32))
    check_numbers(u, g, at_least, at_most)


def test_extreme_words_stay_within_the_bounds(device: Gpu) -> None:
    """Powers of two and their neighbours: where the number of leading zeros, or the rounding to float, changes."""
    powers = np.concatenate([2 ** np.arange(32) + d for d in (-1, 0, 1)])
    words = np.unique(np.concatenate([powers, 2**32 - 1 - np.arange(300), np.arange(300)])).astype(np.uint32)
    outputs = [poisoned(device, words.shape, np.float32) for _ in range(4)]
    function = device.compile(SOURCE).function("numbers_of_words")
    arguments: list[Argument] = [*outputs, put(device, words), np.int32(len(words))]
    device.launch(function, (-(-len(words) // 128), 1, 1), (128, 1, 1), arguments)
    u, g, at_least, at_most = (get(device, out) for out in outputs)
    assert u.min() == 2.0**-33
    assert u.max() == 1 - 2.0**-24
    check_numbers(u, g, at_least, at_most)
    assert GUMBEL_RANGE[0] < g.min()
    assert g.max() < GUMBEL_RANGE[1]
