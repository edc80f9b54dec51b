"""lm_head_logits against its definition, lm_head_argmax against the largest of exact logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Array, Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.layers import Norm
from tinyvllm_kernels.projection.lm_head import LmHeadArgmax, LmHeadLogits
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling

from .support import bf16, f64, get, linear_value, normed_dot_error, normed_product, once, poisoned, put

EPS = 1e-5

make_logits = once(LmHeadLogits)
make_argmax = once(LmHeadArgmax)

# E, V, rows: fewer outputs than a tile, ragged last tiles, many tiles for each block; then one tile a block.
HEADS: tuple[tuple[int, int, int | Tiling], ...] = (
    (2048, 139, 1),
    (192, 3001, 1),
    (40, 5, 1),
    (192, 500, Tiling(1, rows_per_warp=2)),
    (2048, 139, 8),
    (192, 3001, 16),
    (40, 5, 32),
    (192, 500, Tiling(8, warps_per_row=2, rows_per_warp=16)),
)

heads = st.sampled_from(HEADS)
seeds = st.integers(0, 2**32 - 1)


def tiling_of(head: tuple[int, int, int | Tiling]) -> Tiling:
    size_k, vocab_size, cut = head
    if isinstance(cut, Tiling):
        return cut
    return choose_tiling(size_k, cut, num_outputs=vocab_size, blocks_per_sm=4 if cut == 1 else 1, may_split=False)


def argmax(device: Gpu, head: tuple[int, int, int | Tiling], x: Array, weight: Array) -> list[int]:
    run = make_argmax(device, hidden_size=head[0], vocab_size=head[1], eps=EPS, max_rows=40, tiling=tiling_of(head))
    token_ids = poisoned(device, (len(x),), np.int32)
    run(token_ids, put(device, x), put(device, bf16(np.ones(head[0]))), put(device, weight))
    return [int(token) for token in get(device, token_ids)]


def num_rows(head: tuple[int, int, int | Tiling], wanted: int) -> int:
    batch_rows = tiling_of(head).batch_rows
    return 1 if batch_rows == 1 else 1 + wanted % (batch_rows + 3)


@settings(max_examples=30, deadline=None)
@given(head=heads, rows=st.integers(1, 40), seed=seeds)
def test_logits_are_their_definition(device: Gpu, head: tuple[int, int, int | Tiling], rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size_k, vocab_size, _ = head
    tiling = tiling_of(head)
    x = bf16(rng.standard_normal((num_rows(head, rows), size_k)))
    weight = bf16(rng.standard_normal((vocab_size, size_k)))
    norm = Norm(f64(bf16(rng.uniform(0.25, 4.0, size_k))), EPS)
    logits = poisoned(device, (len(x), vocab_size), np.float32)
    make_logits(device, hidden_size=size_k, vocab_size=vocab_size, eps=EPS, max_rows=40, tiling=tiling)(
        logits, put(device, x), put(device, bf16(norm.weight)), put(device, weight)
    )
    expected = normed_product(x, norm, linear_value(weight))
    error = normed_dot_error(x, norm, weight, int(tiling.batch_rows > 1))
    assert (np.abs(get(device, logits) - expected) <= error).all()


@settings(max_examples=40, deadline=None)
@given(head=heads, rows=st.integers(1, 40), seed=seeds)
def test_argmax_is_the_lowest_of_the_largest(
    device: Gpu, head: tuple[int, int, int | Tiling], rows: int, seed: int
) -> None:
    """Powers of two: every sum is exact on both cores, ties are many, and the norm, also rounded, scales all alike."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (num_rows(head, rows), head[0]))
    x[:, 0] = 1
    weight = np.zeros((head[1], head[0]))
    columns = rng.integers(0, head[0], (head[1], 3))
    for column in columns.T:
        weight[np.arange(head[1]), column] = rng.integers(-2, 3, head[1])
    expected = (x @ weight.T).argmax(axis=1)
    assert argmax(device, head, bf16(x), bf16(weight)) == expected.tolist()


@pytest.mark.parametrize("head", [HEADS[1], HEADS[5]])
def test_the_winner_is_found_wherever_it_is(device: Gpu, head: tuple[int, int, int | Tiling]) -> None:
    for winner in (0, 7, 8, 1500, 2999, 3000):
        weight = np.zeros((head[1], head[0]))
        weight[winner, 100] = 1.0
        assert argmax(device, head, bf16(np.ones((1, head[0]))), bf16(weight)) == [winner]


@pytest.mark.parametrize("head", [HEADS[1], HEADS[5]])
def test_a_nan_anywhere_in_a_row_is_reported_for_that_row(device: Gpu, head: tuple[int, int, int | Tiling]) -> None:
    weight = np.zeros((head[1], head[0]))
    weight[2345, 5] = np.inf  # infinity times zero
    weight[17, 6] = 1.0
    x = np.ones((3 if tiling_of(head).batch_rows > 1 else 1, head[0]))
    x[0, 5] = 0.0
    assert argmax(device, head, bf16(x), bf16(weight)) == [-1, 2345, 2345][: len(x)]


def test_equal_logits_of_minus_infinity_give_token_zero(device: Gpu) -> None:
    weight = np.full((139, 2048), -np.inf)
    assert argmax(device, HEADS[0], bf16(np.ones((1, 2048))), bf16(weight)) == [0]


@pytest.mark.parametrize("head", [HEADS[1], HEADS[5]])
def test_it_can_be_called_again_at_once(device: Gpu, head: tuple[int, int, int | Tiling]) -> None:
    for winner in (2000, 1000):
        weight = np.zeros((head[1], head[0]))
        weight[winner] = 1.0
        assert argmax(device, head, bf16(np.ones((1, head[0]))), bf16(weight)) == [winner]


def test_more_rows_than_it_was_made_for_are_refused(device: Gpu) -> None:
    with pytest.raises(ShapeError, match="1 to 1"):
        LmHeadLogits(device, hidden_size=40, vocab_size=5, eps=EPS)(
            poisoned(device, (2, 5), np.float32), poisoned(device, (2, 40)), poisoned(device, (40,)),
            poisoned(device, (5, 40)),
        )  # fmt: skip
