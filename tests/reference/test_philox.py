"""Philox4x32-10 and the numbers made of it, against known answers and a loop over Python integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvllm.reference import philox
from tinyvllm.reference.philox import UInt64, gumbel, gumbel_at, philox4x32, random_words, random_words_at, uniform
from tinyvllm.shapes import Int32

EPS = 2.0**-24  # half a unit in the last place of float32, relative

words_32 = st.integers(0, 2**32 - 1)


def rounds_by_hand(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The published algorithm on Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def word_by_hand(seed: int, completion_index: int, position: int, token_id: int) -> int:
    return rounds_by_hand((token_id // 4, position, completion_index, 0), (seed % 2**32, seed // 2**32))[token_id % 4]


def streams(seeds: Any, completions: Any, positions: Any) -> tuple[UInt64, Int32, Int32]:
    return np.array(seeds, np.uint64), np.array(completions, np.int32), np.array(positions, np.int32)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123, philox4x32 with 10 rounds
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    got = philox4x32(np.array(counter, np.uint32)[:, None, None], np.array(key, np.uint32)[:, None])
    assert got[:, 0, 0].tolist() == expected


@given(st.tuples(*[words_32] * 4), st.tuples(*[words_32] * 2))
def test_rounds_equal_the_algorithm_on_integers(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    got = philox4x32(np.array(counter, np.uint32)[:, None, None], np.array(key, np.uint32)[:, None])
    assert tuple(got[:, 0, 0].tolist()) == rounds_by_hand(counter, key)


@given(st.integers(0, 2**64 - 1), st.integers(0, 63), st.integers(0, 2**31 - 1), st.integers(1, 70), st.data())
def test_a_tokens_word_is_a_function_of_seed_completion_position_and_id(
    seed: int, completion: int, position: int, vocab_size: int, data: st.DataObject
) -> None:
    token_id = data.draw(st.integers(0, vocab_size - 1))
    expected = word_by_hand(seed, completion, position, token_id)
    stream = streams([7, seed], [1, completion], [9, position])
    assert random_words(*stream, vocab_size)[1, token_id] == expected
    assert random_words_at(*stream, np.array([[0], [token_id]], np.int32))[1, 0] == expected


@pytest.mark.parametrize(("rows", "vocab_size"), [(1, 1), (3, 511), (70, 600), (2, 40_001)])
def test_tiles_and_company_change_no_bit(rows: int, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    stream = streams(rng.integers(0, 2**63, rows), rng.integers(0, 4, rows), rng.integers(0, 1000, rows))
    drawn = gumbel(*stream, vocab_size)
    row = rows - 1
    seed, completion, position = stream[0][row:], stream[1][row:], stream[2][row:]
    assert drawn.shape == (rows, vocab_size)
    np.testing.assert_array_equal(gumbel(seed, completion, position, vocab_size)[0], drawn[row])
    token_ids = rng.integers(0, vocab_size, (rows, 2 * vocab_size), dtype=np.int32)
    np.testing.assert_array_equal(gumbel_at(*stream, token_ids), np.take_along_axis(drawn, token_ids, axis=1))
    last = word_by_hand(int(seed[0]), int(completion[0]), int(position[0]), vocab_size - 1)
    assert random_words(*stream, vocab_size)[row, -1] == last


@given(st.lists(words_32, min_size=1, max_size=40))
def test_uniform_and_gumbel_follow_their_formulas(words: list[int]) -> None:
    words += [0, 1, 2**32 - 1, 2**32 - 128, 2**32 - 129, 2**24, 2**24 + 1]
    u = philox._uniform(np.array([words], np.uint32))[0]
    for word, got in zip(words, u.tolist(), strict=True):
        assert got == float(min(np.float32(np.float32(float(word)) * 2.0**-32 + 2.0**-33), np.float32(1 - 2.0**-24)))
        assert 0 < got < 1
    g = philox._gumbel(u[None].copy())[0]
    for uniform_value, got in zip(u.tolist(), g.tolist(), strict=True):
        exponential = -math.log1p(-uniform_value)
        # NumPy's float32 logarithms are right to 4 units; a relative error of e is an absolute one of log e.
        assert abs(got + math.log(exponential)) <= 8 * EPS * (1 + abs(math.log(exponential)))
        assert philox.GUMBEL_RANGE[0] < got < philox.GUMBEL_RANGE[1]


def test_small_uniforms_are_fine_enough_for_rare_tokens() -> None:
    u = philox._uniform(np.arange(64, dtype=np.uint32)[None])[0]
    np.testing.assert_array_equal(u, (2 * np.arange(64) + 1) * 2.0**-33)


def test_uniform_has_no_preferred_bin() -> None:
    u = uniform(*streams([123], [0], [5]), 64 * 1024)[0]
    counts = np.histogram(u, bins=64, range=(0, 1))[0]
    chi_squared = float(((counts - 1024) ** 2 / 1024).sum())
    assert 63 - 5 * math.sqrt(126) < chi_squared < 63 + 6 * math.sqrt(126)  # mean 63, variance 126


def test_streams_of_neighbours_are_unrelated() -> None:
    size = 4096
    seeds = [1, 2, 1, 1, 1 + 2**32]
    rows = uniform(*streams(seeds, [0, 0, 1, 0, 0], [10, 10, 10, 11, 10]), size)
    correlation = np.corrcoef(rows)
    assert np.abs(correlation - np.eye(len(seeds))).max() < 5 / math.sqrt(size)
