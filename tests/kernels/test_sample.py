"""Drawing tokens on the device against the definitions: every row gets a token that float64 cannot tell is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from tinyvllm.batch import SamplingRows
from tinyvllm.device import Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.reference.sampling import sample
from tinyvllm.shapes import Float32

from .sampling import (
    INF,
    SMALL,
    Step,
    admissible,
    check,
    draw,
    launch_gumbel,
    logits_and_rows,
    make_sample,
    rows_of,
    take,
)
from .support import get, put

SIZES = (1, 3, 4, 31, 255, 256, 257, 300, 1029, 2500)  # a tile has 256 tokens or more, a step 512, a cut row's list 48


@settings(max_examples=60, deadline=None)
@given(logits_and_rows(SIZES, cut=False))
def test_an_uncut_row_gets_the_winner_of_the_race(device: Gpu, case: tuple[Float32, SamplingRows]) -> None:
    tokens, corrupt = draw(device, *case, may_cut=False)
    check(*case, tokens)
    assert not corrupt.any()


@settings(max_examples=100, deadline=None)
@given(logits_and_rows(SIZES))
def test_a_cut_row_gets_the_winner_among_what_is_kept(device: Gpu, case: tuple[Float32, SamplingRows]) -> None:
    tokens, corrupt = draw(device, *case)
    check(*case, tokens)
    assert not corrupt.any()


def test_nearly_every_token_is_the_references(device: Gpu) -> None:
    """Without this the tolerance of the others could hide anything."""
    rng = np.random.default_rng(2)
    certain = 0
    for vocab_size in (257, 1029):
        logits = (rng.standard_normal((64, vocab_size)) * 3).astype(np.float32)
        rows = rows_of(
            64,
            temperature=rng.choice([0.6, 1.0, 1.5], 64),
            top_k=rng.choice([0, 3, 40, 200], 64),
            top_p=rng.choice([1.0, 0.5, 0.95], 64),
            min_p=rng.choice([0.0, 0.0, 0.02], 64),
            seed=rng.integers(0, 2**63, 64),
        )
        tokens = np.concatenate(
            [draw(device, logits[i : i + 16], take(rows, np.s_[i : i + 16]))[0] for i in range(0, 64, 16)]
        )
        certain += check(logits, rows, tokens)
        expected = sample(logits, rows)
        differ = np.flatnonzero(tokens != expected)
        assert all(len(admissible(logits, rows, row)) > 1 for row in differ.tolist())
    assert certain >= 126  # of 128


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.2, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (0.99, 4), (1e-60, 1)]
)
def test_the_nucleus_has_the_token_that_crosses_top_p_and_none_after(device: Gpu, top_p: float, kept: int) -> None:
    assert support(device, [0.0] * 4, top_p=top_p) == set(range(kept))


def support(device: Gpu, logits: list[float], list_size: int = 48, **columns: Any) -> set[int]:
    """Every token of 48 draws."""
    rows = rows_of(48, **columns)
    tokens, _ = draw(device, np.tile(np.array(logits, np.float32), (48, 1)), rows, **{**SMALL, "list_size": list_size})
    return set(tokens.tolist())


@pytest.mark.parametrize("list_size", [1, 48])
def test_cuts_come_in_order_and_ties_go_by_lowest_id(device: Gpu, list_size: int) -> None:
    def kept(logits: list[float], **columns: Any) -> set[int]:
        return support(device, logits, list_size, **columns)

    assert kept([0, 1, 1, 0, 1, 1], top_k=3) == {1, 2, 4}
    assert kept([0.0, -0.0, 0.0, -0.0], top_k=2) == {0, 1}
    assert kept([0.0] * 4, top_k=2, top_p=0.5) == {0}
    assert kept([0.0] * 4, top_k=2, top_p=0.6) == {0, 1}
    assert kept([0.0] * 4, top_k=1, top_p=0.9) == {0}
    assert kept([1.0, 1.0, 0.99], min_p=1.0) == {0, 1}
    few = [0.0, 0.0] + [math.log(0.4)] * 10
    assert kept(few, min_p=0.5, top_p=0.5) == {0}
    assert kept(few, top_p=0.5) == {0, 1, 2, 3, 4}
    assert kept([0.0, -1.0, -2.0], min_p=0.3) == {0, 1}
    assert kept([0.0, -1.0, -2.0], min_p=0.3, temperature=2.0) == {0, 1, 2}
    assert kept([-INF, 0.0, -INF, -1.0], top_k=3) == {1, 3}
    assert kept([-INF, -INF, -3e38], temperature=1e-30) == {2}
    assert kept([5.0, 5.0, 4.9], temperature=1e-6) == {0, 1}  # noise decides between equals
    assert kept([5.0, 5.0, 5.0, 4.9], temperature=1e-39, top_k=2) == {0, 1}  # its reciprocal is infinite
    assert kept([0.0, -0.000988], top_p=0.3) == {0}  # the next bucket


def test_a_quotient_at_the_edge_of_a_bucket_has_the_bits_of_a_division(device: Gpu) -> None:
    """A product with the reciprocal would put the token in another bucket, and so lose it."""
    rng = np.random.default_rng(0)
    distance, divisor = (rng.uniform(1, most, 4_000_000).astype(np.float32) for most in (4, 2))
    products = distance / divisor, distance * (np.float32(1) / divisor)
    right, wrong = ((product * divisor).view(np.uint32) >> 16 for product in products)
    edges = np.flatnonzero(right > wrong)[:4].tolist()
    assert len(edges) == 4
    for i in edges:
        logits = [0.0] + [float(-distance[i])] * 40
        assert len(support(device, logits, temperature=divisor[i], top_k=41, top_p=0.999999)) > 1


@pytest.mark.parametrize("list_size", [48, 1300])
@pytest.mark.parametrize("kept", [1, 47, 48, 49, 300, 1299, 1300])
def test_a_nucleus_of_equal_tokens_ends_at_its_token(device: Gpu, kept: int, list_size: int) -> None:
    """All tokens share a place but for their id; the list holds them all, or fewer than are kept."""
    vocab_size, rows = 1300, rows_of(6, top_p=(kept - 0.5) / 1300, seed=6)
    sizes = {**SMALL, "list_size": list_size}
    logits = np.zeros((6, vocab_size), np.float32)
    uncut, _ = draw(device, logits[:, :kept], rows.replace(top_p=np.ones(6, np.float32)))
    np.testing.assert_array_equal(draw(device, logits, rows, **sizes)[0], uncut)
    limited = rows.replace(top_p=np.ones(6, np.float32), top_k=np.full(6, kept, np.int32))
    np.testing.assert_array_equal(draw(device, logits, limited, **sizes)[0], uncut)
    both = limited.replace(top_p=np.full(6, 1 - 0.5 / kept, np.float32))
    np.testing.assert_array_equal(draw(device, logits, both, **sizes)[0], uncut)


@pytest.mark.parametrize("list_size", [48, 1024])
@pytest.mark.parametrize("temperature", [1e-4, 0.7, 1.0, 3.0, 1e7])
def test_most_of_a_flat_vocabulary_may_be_kept(device: Gpu, temperature: float, list_size: int) -> None:
    """Hundreds of tokens share the bucket of the cut: more than threads, and more than a short list can hold."""
    rng = np.random.default_rng(4)
    logits = (rng.standard_normal((15, 20_000)) * 0.9).astype(np.float32)
    rows = rows_of(
        15, temperature=temperature, seed=4, top_p=[0.3, 0.5, 0.9, 0.9, 1.0] * 3,
        top_k=[0] * 5 + [9000] * 5 + [100] * 5, min_p=[0, 0, 0, 0.002, 0.01] * 3,
    )  # fmt: skip
    check(logits, rows, draw(device, logits, rows, **{**SMALL, "list_size": list_size})[0])


@settings(max_examples=30, deadline=None)
@given(logits_and_rows((300, 1029, 2500)))
def test_how_many_tokens_can_be_listed_changes_no_token(device: Gpu, case: tuple[Float32, SamplingRows]) -> None:
    few, many = (draw(device, *case, **{**SMALL, "list_size": list_size})[0] for list_size in (1, 4096))
    np.testing.assert_array_equal(few, many)


def random_batch(rng: np.random.Generator, num_rows: int, vocab_size: int) -> tuple[Float32, SamplingRows]:
    rows = rows_of(
        num_rows,
        temperature=rng.choice([0.0, 0.2, 0.7, 1.0, 1.9], num_rows),
        top_k=rng.choice([0, 0, 0, 5, 50, 400], num_rows),
        top_p=rng.choice([1.0, 1.0, 0.3, 0.95], num_rows),
        min_p=rng.choice([0.0, 0.0, 0.01], num_rows),
        seed=rng.integers(0, 2**63, num_rows),
        position=rng.integers(0, 5000, num_rows),
    )
    return (rng.standard_normal((num_rows, vocab_size)) * 4).astype(np.float32), rows


@pytest.mark.parametrize("vocab_size", [37, 1029])
def test_company_and_place_change_no_token(device: Gpu, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits, rows = random_batch(rng, 12, vocab_size)
    together, _ = draw(device, logits, rows)
    for pick in ([3], [11], rng.permutation(12), rng.integers(0, 12, 20)):
        np.testing.assert_array_equal(draw(device, logits[pick], take(rows, pick))[0], together[pick])


def test_block_sizes_change_no_token_of_a_cut_row(device: Gpu) -> None:
    logits, rows = random_batch(np.random.default_rng(0), 8, 1029)
    rows = rows.replace(top_k=np.array([5, 100, 0, 700] * 2, np.int32), top_p=np.full(8, 0.98, np.float32))
    small = draw(device, logits, rows)[0]
    large = draw(device, logits, rows, threads=128, loads=4, num_blocks=8, list_size=1024)[0]
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize(
    ("rise", "temperature"),
    [(1.0, 1), (0.0, 1e-6), (0.0, 1e-30), (1e30, 1e-30)],
    ids=["each-beats-those-before", "all-alike-and-far-from-0", "infinite", "infinitely-apart"],
)
@pytest.mark.parametrize("vocab_size", [20, 1029])
def test_more_tokens_may_win_than_a_tile_can_name(
    device: Gpu, vocab_size: int, rise: float, temperature: float
) -> None:
    logits = np.tile(np.arange(vocab_size) * rise + 3, (8, 1)).astype(np.float32)
    rows = rows_of(8, temperature=temperature, seed=np.arange(8))
    check(logits, rows, draw(device, logits, rows)[0])


def test_how_rows_are_cut_changes_no_token(device: Gpu) -> None:
    logits, rows = random_batch(np.random.default_rng(1), 12, 1029)
    few, many = (draw(device, logits, rows, **{**SMALL, "num_blocks": num_blocks})[0] for num_blocks in (1, 1000))
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, INF])
@pytest.mark.parametrize("columns", [{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_a_corrupt_row_is_reported_and_the_others_go_on(device: Gpu, bad: float, columns: dict[str, Any]) -> None:
    logits, rows = random_batch(np.random.default_rng(3), 4, 600)[0], rows_of(4, **columns)
    sound, _ = draw(device, logits, rows)
    logits[1, 599], logits[3] = bad, -INF
    tokens, corrupt = draw(device, logits, rows)
    assert corrupt.tolist() == [False, True, False, True]
    assert tokens.tolist() == [sound[0], 0, sound[2], 0]


def chi_squared_bound(degrees: int) -> float:
    """What a χ² variable exceeds once in a million (Wilson & Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + 4.76 * math.sqrt(spread)) ** 3)


@pytest.mark.parametrize("columns", [{}, {"temperature": 1.7}, {"top_k": 4}, {"top_p": 0.8}], ids=str)
def test_draws_have_the_distribution_of_the_kept_tokens(device: Gpu, columns: dict[str, Any]) -> None:
    draws = 1500
    logits = np.random.default_rng(5).standard_normal(8).astype(np.float32)
    got = np.concatenate([
        draw(device, np.tile(logits, (50, 1)), rows_of(50, position=np.arange(i, i + 50), **columns))[0]
        for i in range(0, draws, 50)
    ])  # fmt: skip
    counts = np.bincount(got, minlength=8)
    kept = np.flatnonzero(counts)
    weight = np.exp((logits - logits.max()).astype(np.float64) / columns.get("temperature", 1))
    order = np.argsort(-weight)
    limit = columns.get("top_k") or 1 + np.count_nonzero(
        np.cumsum(weight[order]) < columns.get("top_p", 1) * weight.sum()
    )
    assert set(kept.tolist()) == set(order[: min(limit, 8)].tolist())
    expected = weight[kept] * draws / weight[kept].sum()
    assert ((counts[kept] - expected) ** 2 / expected).sum() < chi_squared_bound(len(kept) - 1)


def test_a_graph_replays_with_changed_parameters(device: Gpu) -> None:
    """Every parameter is a column on the device: nothing about a row is baked into the recorded launches."""
    rng = np.random.default_rng(9)
    logits, rows = random_batch(rng, 6, 300)
    step = Step.of(device, logits, rows)
    launch = make_sample(device, vocab_size=300, max_rows=64, **SMALL)
    with device.capture() as graph:
        launch(step.out, step.logits, step.columns, step.slots, step.positions)
    for _ in range(4):
        logits, rows = random_batch(rng, 6, 300)
        device.memory.upload(step.logits, np.concatenate([logits, logits[:1]]))
        device.memory.upload(step.positions, np.append(rows.position, np.int32(0)))
        step.columns.write(step.host_slots, rows)
        step.columns.upload()
        graph.replay()
        check(logits, rows, step.results()[0])


@pytest.mark.parametrize("columns", [{}, {"top_k": 5}], ids=str)
def test_it_waits_for_the_kernel_that_makes_the_logits(device: Gpu, columns: dict[str, Any]) -> None:
    words = np.random.default_rng(3).integers(0, 2**32, (4, 1000), dtype=np.uint32)
    rows = rows_of(3, **columns)
    step = Step.of(device, np.zeros((3, 1000), np.float32), rows)
    launch = make_sample(device, vocab_size=1000, max_rows=64, **SMALL)
    launch_gumbel(device, step.logits, words.reshape(-1))
    launch(step.out, step.logits, step.columns, step.slots, step.positions)
    tokens, _ = step.results()
    check(get(device, step.logits)[:3], rows, tokens)


def test_the_sizes_of_a_real_model(device: Gpu) -> None:
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((4, 128_256)) * 2.5).astype(np.float32)
    rows = rows_of(4, temperature=[0.6, 0.8, 1.0, 0.0], top_k=[0, 50, 0, 0], top_p=[1.0, 1.0, 0.9, 1.0], seed=5)
    step = Step.of(device, logits, rows)
    launch = make_sample(device, vocab_size=128_256, max_rows=8)
    launch(step.out, step.logits, step.columns, step.slots, step.positions)
    check(logits, rows, step.results()[0])


def test_wrong_shapes_are_refused_before_anything_runs(device: Gpu) -> None:
    step = Step.of(device, np.zeros((3, 64), np.float32), rows_of(3))
    launch = make_sample(device, vocab_size=64, max_rows=64, **SMALL)
    inputs = (step.logits, step.columns, step.slots)
    with pytest.raises(ShapeError, match=r"sample positions has shape \[3\], expected \[4\]"):
        launch(step.out, *inputs, put(device, np.zeros(3, np.int32)))
    with pytest.raises(ShapeError, match="sample adjusted has shape"):
        launch(step.out, *inputs, step.positions, adjusted=put(device, np.zeros((2, 63), np.float32)))
    with pytest.raises(ShapeError, match="dtype float64"):
        launch(step.out, put(device, np.zeros((4, 64))), *inputs[1:], step.positions)
    with pytest.raises(ShapeError, match="1048577 tokens"):
        make_sample(device, vocab_size=2**20 + 1, max_rows=1)
