"""Penalties, biases and masks, against loops in float64 over one sequence."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinyvllm.reference import penalties
from tinyvllm.shapes import Int32

EPS = 2.0**-24
SIZE = 9

token_ids = st.lists(st.integers(0, SIZE - 1), max_size=20)
logit_rows = st.lists(st.floats(-50, 50, width=32) | st.just(-math.inf), min_size=SIZE, max_size=SIZE)


def ids(values: list[int]) -> Int32:
    return np.array(values, np.int32)


@given(logit_rows, token_ids, st.floats(0.125, 8, width=32))
def test_repetition_divides_positive_and_multiplies_negative_logits_once(
    row: list[float], tokens: list[int], penalty: float
) -> None:
    got = np.array(row, np.float32)
    penalties.penalise_repetition(got, ids(tokens), penalty)
    for v, x in enumerate(row):
        expected = x if v not in tokens else x / penalty if x > 0 else x * penalty
        assert got[v] == np.float32(expected)  # one operation, rounded once


@given(logit_rows, token_ids, st.floats(-2, 2, width=32), st.floats(-2, 2, width=32))
def test_frequency_counts_and_presence_does_not(
    row: list[float], output: list[int], frequency: float, presence: float
) -> None:
    got = np.array(row, np.float32)
    penalties.penalise_output(got, ids(output), frequency, presence)
    for v, x in enumerate(row):
        expected = x - frequency * output.count(v) - presence * (v in output)
        if x == -math.inf or v not in output:
            assert got[v] == np.float32(expected)
        else:  # a product and two differences
            assert abs(got[v] - expected) <= 3 * EPS * (abs(x) + 2 * len(output) + 2)


@given(logit_rows, token_ids, st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=6))
def test_a_bad_words_last_token_is_forbidden_after_its_others(
    row: list[float], output: list[int], words: list[list[int]]
) -> None:
    output = [token % 4 for token in output]
    got = np.array(row, np.float32)
    penalties.forbid_bad_words(got, ids(output), words)
    for v, x in enumerate(row):
        is_bad = any(word[-1] == v and [*output, v][-len(word) :] == word for word in words)
        assert got[v] == (-math.inf if is_bad else np.float32(x))


@given(logit_rows, st.lists(st.integers(0, SIZE - 1), min_size=1, unique=True))
def test_only_allowed_tokens_keep_their_logits(row: list[float], allowed: list[int]) -> None:
    got = np.array(row, np.float32)
    penalties.keep_only(got, allowed)
    assert got.tolist() == [np.float32(x) if v in allowed else -math.inf for v, x in enumerate(row)]


@given(logit_rows, st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100, width=32)))
def test_a_bias_is_added(row: list[float], bias: dict[int, float]) -> None:
    got = np.array(row, np.float32)
    penalties.add_bias(got, bias)
    assert got.tolist() == [np.float32(x + bias.get(v, 0.0)) for v, x in enumerate(row)]


@given(logit_rows, token_ids)
def test_forbidden_tokens_lose_their_logits(row: list[float], forbidden: list[int]) -> None:
    got = np.array(row, np.float32)
    penalties.forbid(got, forbidden)
    assert got.tolist() == [-math.inf if v in forbidden else np.float32(x) for v, x in enumerate(row)]
