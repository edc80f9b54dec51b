"""add, logits and greedy_ids, which serve what a replaced part leaves over of a fused op, against their definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Array, Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.reference.add import add
from tinyvllm.reference.argmax import argmax
from tinyvllm_kernels.projection.logits import LogitsRows
from tinyvllm_kernels.rows.add import Add
from tinyvllm_kernels.rows.greedy_ids import GreedyIds

from .support import assert_close, bf16, dot_error, f64, get, once, poisoned, put, rows_of_many_scales

make_add = once(Add)
make_greedy_ids = once(GreedyIds)
make_logits = once(LogitsRows)
few = settings(max_examples=20, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


@few
@given(size=st.sampled_from((8, 40, 192, 2112)), num_rows=st.integers(1, 9), seed=SEEDS)
def test_add_is_its_definition(device: Gpu, size: int, num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    residual, x = (rows_of_many_scales(rng, (num_rows, size)) for _ in range(2))
    out = put(device, residual)
    make_add(device, hidden_size=size)(out, put(device, x))
    expected = add(f64(residual), f64(x))  # type: ignore[arg-type]  # the definition in float64
    assert_close(get(device, out), expected, 2.0**-24 * np.abs(expected))


@few
@given(
    size=st.sampled_from((16, 192, 520)),
    vocab_size=st.integers(1, 70),
    num_rows=st.integers(1, 17),
    max_rows=st.sampled_from((1, 8, 32)),
    seed=SEEDS,
)
def test_logits_are_sums_of_products_that_are_not_rounded(
    device: Gpu, size: int, vocab_size: int, num_rows: int, max_rows: int, seed: int
) -> None:
    num_rows = min(num_rows, max_rows)
    rng = np.random.default_rng(seed)
    x, weight = rows_of_many_scales(rng, (num_rows, size)), rows_of_many_scales(rng, (vocab_size, size))
    logits = poisoned(device, (num_rows, vocab_size), np.float32)
    make_logits(device, hidden_size=size, vocab_size=vocab_size, max_rows=max_rows)(
        logits, put(device, x), put(device, weight)
    )
    magnitude = np.abs(f64(x)) @ np.abs(f64(weight)).T
    off = np.abs(f64(get(device, logits)) - f64(x) @ f64(weight).T)
    assert (off <= dot_error(magnitude, size)).all()


@few
@given(vocab_size=st.sampled_from((1, 61, 5000)), num_rows=st.integers(1, 6), seed=SEEDS)
def test_greedy_ids_are_the_lowest_largest_or_minus_one(device: Gpu, vocab_size: int, num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-20, 20, (num_rows, vocab_size)).astype(np.float32)  # many equals
    spoiled = rng.choice([np.nan, np.inf, -np.inf, 0.0], num_rows)
    logits[np.arange(num_rows), rng.integers(0, vocab_size, num_rows)] = spoiled
    token_ids = poisoned(device, (num_rows,), np.int32)
    make_greedy_ids(device, vocab_size=vocab_size, max_rows=6)(token_ids, put(device, logits))
    assert get(device, token_ids).tolist() == argmax(logits).tolist()


def test_the_parts_wait_for_each_other(device: Gpu) -> None:
    """Addition, logits and tokens in one graph: each reads what the one before it has written."""
    rng = np.random.default_rng(0)
    values = bf16(rng.standard_normal((2, 48)))
    weight = bf16(rng.standard_normal((61, 48)))
    weight[7] = np.nan
    x, head = put(device, bf16(rng.standard_normal((2, 48)))), put(device, weight)
    residual, more = poisoned(device, (2, 48)), put(device, values)
    logits, ids = poisoned(device, (2, 61), np.float32), poisoned(device, (2,), np.int32)

    def run(after_each: Callable[[], None]) -> None:
        for _ in range(2):
            make_add(device, hidden_size=48)(residual, x)
            after_each()
        make_add(device, hidden_size=48)(more, residual)
        after_each()
        make_logits(device, hidden_size=48, vocab_size=61, max_rows=8)(logits, more, head)
        after_each()
        make_greedy_ids(device, vocab_size=61, max_rows=6)(ids, logits)

    def results() -> list[Array]:
        return [get(device, buffer) for buffer in (residual, more, logits, ids)]

    def reset() -> None:
        device.memory.upload(residual, values)
        device.memory.upload(more, values)
        for buffer in (logits, ids):
            device.memory.fill(buffer, 0x7F)
        device.synchronize()

    reset()
    run(device.synchronize)
    separate = results()
    assert separate[3].tolist() == [-1, -1]
    reset()
    with device.capture() as graph:
        run(lambda: None)
    graph.replay()
    for got, expected in zip(results(), separate, strict=True):
        assert got.tobytes() == expected.tobytes()


def test_another_shape_is_refused(device: Gpu) -> None:
    with pytest.raises(ShapeError, match=r"add x has shape \[2, 48\]"):
        make_add(device, hidden_size=40)(poisoned(device, (2, 40)), put(device, bf16(np.zeros((2, 48)))))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_corrupt_row_in_a_chain_is_reported(device: Gpu, bad: float) -> None:
    residual, x = put(device, bf16(np.ones((2, 40)))), bf16(np.zeros((2, 40)))
    x[1, 3] = bad
    logits, ids = poisoned(device, (2, 70), np.float32), poisoned(device, (2,), np.int32)
    make_add(device, hidden_size=40)(residual, put(device, x))
    weight = put(device, bf16(np.ones((70, 40))))
    make_logits(device, hidden_size=40, vocab_size=70, max_rows=8)(logits, residual, weight)
    make_greedy_ids(device, vocab_size=70, max_rows=6)(ids, logits)
    assert get(device, ids).tolist() == [0, -1]
