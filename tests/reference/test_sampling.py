"""Truncation and the draw, against a loop over one row written from the definitions, with its own Philox."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.batch import SamplingRows
from tinyvllm.reference.philox import gumbel
from tinyvllm.reference.sampling import sample
from tinyvllm.shapes import Float32

EPS = 2.0**-24  # half a unit in the last place of float32, relative
INF = math.inf

Parameter = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p


def columns(
    rows: int,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    seed: Any = 0,
    completion_index: Any = 0,
    position: Any = None,
) -> SamplingRows:
    return SamplingRows.of(
        rows,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        completion_index=completion_index,
        position=np.arange(rows) if position is None else position,
    )


def gumbel_by_hand(seed: int, completion_index: int, position: int, token_id: int) -> float:
    c = [token_id // 4, position, completion_index, 0]
    k = [seed % 2**32, seed // 2**32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q % 2**32, (p >> 32) ^ c[3] ^ k[1], p % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    u = min(float(np.float32(c[token_id % 4])) * 2.0**-32 + 2.0**-33, 1 - 2.0**-24)
    return -math.log(-math.log1p(-float(np.float32(u))))


def kept_by_hand(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[list[float], set[int], set[int]]:
    """``(z, surely, possibly)``: two sets of token ids that differ where rounding may decide."""
    # z is defined in float32 and single operations are exact to the bit, so that ties are ties here too.
    top = max(logits)
    with np.errstate(over="ignore"):
        z = [float((np.float32(x) - np.float32(top)) / np.float32(temperature)) for x in logits]
    weight = [math.exp(v) for v in z]
    slack = [w * EPS * (abs(v) + 8) if w else 0.0 for w, v in zip(weight, z, strict=True)]
    top_p, min_p = float(np.float32(top_p)), float(np.float32(min_p))
    order = sorted(range(len(z)), key=lambda v: (-z[v], v))
    order = [v for v in order if weight[v] + slack[v] >= min_p and z[v] > -INF]
    unsure_floor = {v for v in order if weight[v] - slack[v] < min_p}
    if top_k > 0:
        order = order[:top_k]
    total = sum(weight[v] for v in order)
    error = sum(slack[v] for v in order) + sum(weight[v] for v in unsure_floor)
    surely: set[int] = set()
    possibly: set[int] = set()
    before = 0.0
    for i, v in enumerate(order):
        if i == 0 or top_p >= 1 or before - error < top_p * total:
            possibly.add(v)
        if i == 0 or top_p >= 1 or before + error < top_p * total:
            surely.add(v)
        before += weight[v]
    return z, surely - unsure_floor, possibly


def check_choice(chosen: int, logits: list[float], parameter: Parameter, stream: tuple[int, int, int]) -> None:
    z, surely, possibly = kept_by_hand(logits, *parameter)
    assert chosen in possibly
    score = {v: z[v] + gumbel_by_hand(*stream, v) for v in possibly}
    best = max((score[v] for v in surely), default=-INF)
    # The logarithms are right to a few units, the sum rounds once.
    tolerance = EPS * 16 * (1 + abs(score[chosen]) + abs(z[chosen]))
    assert score[chosen] >= best - tolerance


@st.composite
def peaked_logits(draw: st.DrawFn) -> Float32:
    size = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([0.0, 0.5, 3.0, 20.0, 1e4, 1e30]))
    logits = np.random.default_rng(seed).standard_normal(size) * scale
    if draw(st.booleans()):
        logits = np.round(logits)  # ties
    masked = draw(st.lists(st.integers(0, size - 1), max_size=size - 1, unique=True))
    logits[masked] = -INF
    return logits.astype(np.float32)


parameters = st.tuples(
    st.sampled_from([1e-6, 0.01, 0.3, 1.0, 2.5, 100.0]),
    st.sampled_from([0, 1, 2, 5, 39, 1000]),
    st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(peaked_logits(), parameters, st.integers(0, 2**64 - 1))
def test_the_choice_is_the_best_of_what_the_definitions_keep(logits: Float32, parameter: Parameter, seed: int) -> None:
    rows = 12
    got = sample(np.tile(logits, (rows, 1)), columns(rows, *parameter, seed, 3))
    for position, chosen in enumerate(got.tolist()):
        check_choice(chosen, logits.tolist(), parameter, (seed, 3, position))


def support(logits: list[float], rows: int = 400, **parameter: float) -> set[int]:
    """Every token that is drawn in ``rows`` draws."""
    return set(sample(np.tile(np.array(logits, np.float32), (rows, 1)), columns(rows, **parameter)).tolist())


@pytest.mark.parametrize(("top_p", "kept"), [(0.2, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_the_nucleus_has_the_token_that_crosses_top_p_and_none_after(top_p: float, kept: int) -> None:
    assert support([0.0] * 4, top_p=top_p) == set(range(kept))


def test_the_most_likely_token_stays_however_small_top_p_is() -> None:
    assert support([0.0, 1.0, 0.5], top_p=1e-60) == {1}  # 0 in float32


def test_equal_logits_are_kept_by_lowest_id() -> None:
    assert support([0, 1, 1, 0, 1, 1], top_k=3) == {1, 2, 4}
    assert support([0.0, -0.0, 0.0, -0.0], top_k=2) == {0, 1}


def test_top_k_comes_before_top_p() -> None:
    # Of four equal tokens top_k leaves two, each half of what is left, so 0.5 keeps one and 0.6 both.
    assert support([0.0] * 4, top_k=2, top_p=0.5) == {0}
    assert support([0.0] * 4, top_k=2, top_p=0.6) == {0, 1}


def test_min_p_comes_before_top_p() -> None:
    # Weights 1, 1 and ten of 0.4: with the ten gone the first is half of what is left.
    logits = [0.0, 0.0] + [math.log(0.4)] * 10
    assert support(logits, min_p=0.5, top_p=0.5) == {0}
    assert support(logits, top_p=0.5) == {0, 1, 2, 3, 4}  # the mass is 6; before token 4 it is 2.8, before token 5 3.2


def test_min_p_is_relative_to_the_most_likely_token_after_temperature() -> None:
    logits = [0.0, -1.0, -2.0]
    assert support(logits, min_p=0.3) == {0, 1}  # 1, 0.37, 0.14
    assert support(logits, min_p=0.3, temperature=2.0) == {0, 1, 2}  # 1, 0.61, 0.37
    assert support([1.0, 1.0, 0.99], min_p=1.0) == {0, 1}


def test_masked_tokens_are_never_chosen() -> None:
    assert support([-INF, 0.0, -INF, -200.0], temperature=100.0) == {1, 3}
    assert support([-INF, 0.0, -INF, -1.0], top_k=3) == {1, 3}
    assert support([-INF, -INF, -3e38], temperature=1e-30) == {2}


def chi_squared_bound(degrees: int) -> float:
    """What a χ² variable exceeds once in a million (Wilson & Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + 4.76 * math.sqrt(spread)) ** 3)


@pytest.mark.parametrize("along", ["position", "completion_index", "seed"])
@pytest.mark.parametrize(
    "parameter",
    [
        {},
        {"temperature": 1.7},
        {"temperature": 0.5, "min_p": 0.01},
        {"top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 9, "top_p": 0.95, "min_p": 0.02},
    ],
    ids=str,
)
def test_draws_have_the_distribution_of_the_kept_tokens(parameter: dict[str, Any], along: str) -> None:
    draws = 20_000
    logits = np.random.default_rng(5).standard_normal(12).astype(np.float32) * 2
    numbered: dict[str, Any] = {"position": 3, "seed": 99, along: np.arange(draws)}
    got = np.bincount(sample(np.tile(logits, (draws, 1)), columns(draws, **parameter, **numbered)), minlength=12)
    full: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | parameter
    z, surely, possibly = kept_by_hand(logits.tolist(), **full)
    assert surely == possibly == set(np.flatnonzero(got).tolist())
    kept = sorted(surely)
    expected = np.array([math.exp(z[v]) for v in kept])
    expected *= draws / expected.sum()
    assert expected.min() > 5  # or χ² is no judge
    assert ((got[kept] - expected) ** 2 / expected).sum() < chi_squared_bound(len(kept) - 1)


def random_batch(rng: np.random.Generator, rows: int, vocab_size: int) -> tuple[Float32, SamplingRows]:
    logits = (rng.standard_normal((rows, vocab_size)) * 4).astype(np.float32)
    return logits, columns(
        rows,
        temperature=rng.choice([0.2, 0.7, 1.0, 1.9], rows),
        top_k=rng.choice([0, 0, 1, 5, 50, 4000], rows),
        top_p=rng.choice([1.0, 1.0, 0.3, 0.95, 0.9999], rows),
        min_p=rng.choice([0.0, 0.0, 0.01], rows),
        seed=rng.integers(0, 2**63, rows),
        completion_index=rng.integers(0, 4, rows),
        position=rng.integers(0, 5000, rows),
    )


@pytest.mark.parametrize("vocab_size", [1, 3, 37, 512, 5000, 20_000])
def test_company_and_place_change_no_token(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    rows = 24
    logits, how = random_batch(rng, rows, vocab_size)
    together = sample(logits, how)
    for row in range(rows):
        assert sample(logits[row : row + 1], how.take(np.array([row])))[0] == together[row]
    order = rng.permutation(np.concatenate([np.arange(rows), rng.integers(0, rows, 9)]))  # shuffled, some twice
    np.testing.assert_array_equal(sample(logits[order], how.take(order)), together[order])


@pytest.mark.parametrize(("scale", "top_p"), [(0.01, 0.9), (3.0, 0.999), (8.0, 0.5)])
def test_a_nucleus_of_thousands_of_tokens_is_found(scale: float, top_p: float) -> None:
    logits = (np.random.default_rng(0).standard_normal(20_000) * scale).astype(np.float32)
    z, surely, possibly = kept_by_hand(logits.tolist(), 1.0, 0, top_p, 0.0)
    assert len(possibly - surely) < 10  # where rounding may decide
    token_ids = np.array(sorted(possibly))
    for position in range(6):
        stream = np.array([4], np.uint64), np.zeros(1, np.int32), np.array([position], np.int32)
        score = np.array([z[v] for v in token_ids]) + gumbel(*stream, 20_000)[0, token_ids]
        got = sample(logits[None], columns(1, top_p=top_p, seed=4, position=position))
        best = token_ids[score.argmax()]
        assert best in surely
        assert got[0] == best


@pytest.mark.parametrize("kept", [1, 600, 1023, 1024, 1025, 1060, 1100, 19_999, 20_000])
def test_the_nucleus_ends_at_its_token_however_many_there_are(kept: int) -> None:
    vocab_size, rows = 20_000, 60
    how = columns(rows, top_p=(kept - 0.5) / vocab_size, seed=6)
    noise = gumbel(how.seed, how.completion_index, how.position, vocab_size)
    got = sample(np.zeros((rows, vocab_size), np.float32), how)
    np.testing.assert_array_equal(got, noise[:, :kept].argmax(axis=1))


def test_leaving_out_tokens_that_cannot_win_changes_no_token() -> None:
    vocab_size, rows = 1 << 15, 60
    logits = np.full((rows, vocab_size), -40, np.float32)
    logits[:, ::11] = -9  # together about a quarter of the mass
    logits[:, 7] = 0
    how = columns(rows, seed=8)
    noise = gumbel(how.seed, how.completion_index, how.position, vocab_size)
    got = sample(logits, how)
    np.testing.assert_array_equal(got, (logits + noise).argmax(axis=1))
    assert 5 < np.count_nonzero(got != 7) < 30


def test_completions_and_seeds_differ_and_repeat() -> None:
    logits = np.zeros((64, 1000), np.float32)
    how = columns(64, seed=np.arange(64) // 4, completion_index=np.arange(64) % 4, position=10)
    first = sample(logits, how)
    assert len(set(first.tolist())) > 55  # 64 draws of 1000 equal tokens
    np.testing.assert_array_equal(sample(logits, how), first)
