"""Log-probabilities, ranks and the order of tokens, against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.batch import ALL_LOGPROBS
from tinyvllm.reference.logprobs import log_softmax, logprob_columns
from tinyvllm.reference.order import most_likely

EPS = 2.0**-24
INF = math.inf

finite = (
    st.floats(-(2.0**127), 2.0**127, width=32)
    | st.floats(-20, 20, width=32)
    | st.sampled_from([0.0, -0.0, 1.0, 1 + 2.0**-23, -1.0, -1 - 2.0**-23])
)
rows_of_logits = st.lists(finite | st.just(-INF), min_size=1, max_size=30).filter(lambda row: max(row) > -INF)


def log_softmax_by_hand(row: list[float]) -> list[float]:
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [x - top - math.log(total) for x in row]


def tolerance(row: list[float], value: float) -> float:
    """x - max rounds once; exponentials are right to 4 units and their sum is in float64; the result rounds once."""
    top = max(row)
    largest = max((abs(x - top) for x in row if x - top > -100), default=0.0)
    return EPS * (abs(value) + 8 + largest + abs(value))


@settings(deadline=None)
@given(rows_of_logits)
def test_log_softmax_is_the_formula(row: list[float]) -> None:
    got = log_softmax(np.array([row], np.float32))[0].tolist()
    for value, expected in zip(got, log_softmax_by_hand(row), strict=True):
        if expected < -(2.0**127) * 1.99:  # at the end of float32's range
            assert value < -(2.0**127) * 1.98
        else:
            assert abs(value - expected) <= tolerance(row, expected)


@settings(deadline=None)
@given(st.lists(finite | st.just(-INF), min_size=1, max_size=30), st.data())
def test_order_is_by_value_then_by_id(row: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(row)))
    expected = sorted(range(len(row)), key=lambda v: (-row[v], v))[:count]
    assert most_likely(np.array([row], np.float32), count)[0].tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 50, 1024, 4999, 5000])
def test_a_long_row_is_ordered_the_same_way(count: int) -> None:
    values = np.round(np.random.default_rng(count).standard_normal((3, 5000)) * 200).astype(np.float32)
    np.testing.assert_array_equal(most_likely(values, count), np.argsort(-values, axis=1, kind="stable")[:, :count])


@settings(deadline=None)
@given(rows_of_logits, st.integers(-1, 40), st.data())
def test_columns_hold_the_chosen_token_then_the_most_likely(row: list[float], k: int, data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, len(row) - 1))
    got = logprob_columns(np.array([row], np.float32), np.array([chosen], np.int32), k)
    order = sorted(range(len(row)), key=lambda v: (-row[v], v))
    count = len(row) if k == ALL_LOGPROBS else min(k, len(row))
    assert got.token_ids[0].tolist() == [chosen, *order[:count]]
    expected = log_softmax(np.array([row], np.float32))[0]
    np.testing.assert_array_equal(got.logprobs[0], expected[got.token_ids[0]])
    assert got.rank[0] == 1 + sum(x > row[chosen] for x in row)


def test_equal_logits_share_a_rank() -> None:
    logits = np.array([[1, 3, 3, 0]], np.float32)
    ranks = [int(logprob_columns(logits, np.array([v], np.int32), 0).rank[0]) for v in range(4)]
    assert ranks == [3, 1, 1, 4]


@pytest.mark.parametrize("vocab_size", [1, 7, 512, 513, 9001])
def test_company_changes_no_bit(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = (rng.standard_normal((50, vocab_size)) * 5).astype(np.float32)
    chosen = rng.integers(0, vocab_size, 50, dtype=np.int32)
    together = logprob_columns(logits, chosen, 20)
    for row in (0, 1, 17, 49):
        alone = logprob_columns(logits[row : row + 1], chosen[row : row + 1], 3)
        width = alone.token_ids.shape[1]
        np.testing.assert_array_equal(alone.token_ids[0], together.token_ids[row, :width])
        np.testing.assert_array_equal(alone.logprobs[0], together.logprobs[row, :width])
        assert alone.rank[0] == together.rank[row]


def test_a_corrupt_row_gives_nan_and_disturbs_nobody() -> None:
    logits = np.array([[0, 1, 2], [0, np.nan, 2], [0, INF, 2]], np.float32)
    got = logprob_columns(logits, np.zeros(3, np.int32), 2)
    np.testing.assert_array_equal(got.logprobs[0], logprob_columns(logits[:1], np.zeros(1, np.int32), 2).logprobs[0])
    assert np.isnan(got.logprobs[1]).all()
    assert not np.isfinite(got.logprobs[2]).any()
