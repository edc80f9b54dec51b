"""argmax against numpy.argmax: exact, with ties, NaN, infinities and vocabularies of every size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Array, Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.shapes import Float32, Int32
from tinyvllm_kernels.rows.argmax import Argmax

from .sampling import INF, Step, launch_gumbel, rows_of
from .support import once

make_argmax = once(Argmax)
SMALL: dict[str, Any] = {"threads": 64, "loads": 2, "num_blocks": 12}  # a tile of 256 or more, a step of 512
SIZES = (1, 3, 4, 31, 511, 512, 513, 516, 2050, 5000)


def argmax(device: Gpu, logits: Float32, **sizes: Any) -> tuple[Int32, Array]:
    step = Step.of(device, logits, rows_of(len(logits)))
    launch = make_argmax(device, vocab_size=logits.shape[1], max_rows=64, **(sizes or SMALL))
    launch(step.out, step.logits, step.slots)
    return step.results()


@settings(max_examples=40, deadline=None)
@given(vocab_size=st.sampled_from(SIZES), num_rows=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_it_is_the_largest_logit_and_the_lowest_id_of_equals(
    device: Gpu, vocab_size: int, num_rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((num_rows, vocab_size)) * rng.choice([0.0, 0.7, 5.0, 1e-40, 1e37], (num_rows, 1))
    logits = np.where(rng.random((num_rows, 1)) < 0.5, np.round(logits), logits).astype(np.float32)  # -0 and 0 too
    logits[rng.random(logits.shape) < 0.2] = -INF
    logits[np.arange(num_rows), rng.integers(0, vocab_size, num_rows)] = rng.choice([-3e38, 0.0, 2.0])
    tokens, corrupt = argmax(device, logits)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))
    assert not corrupt.any()


@pytest.mark.parametrize("vocab_size", [3, 700, 5000])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, INF])
def test_a_row_with_a_nan_or_an_infinity_is_corrupt_and_its_neighbours_are_not(
    device: Gpu, bad: float, vocab_size: int
) -> None:
    logits = np.random.default_rng(0).standard_normal((5, vocab_size)).astype(np.float32)
    logits[1, vocab_size // 2] = bad
    logits[2] = -INF
    logits[4, -1] = bad
    tokens, corrupt = argmax(device, logits)
    assert corrupt.tolist() == [False, True, True, False, True]
    assert tokens.tolist() == [logits[0].argmax(), 0, 0, logits[3].argmax(), 0]


def test_the_sizes_of_a_real_model(device: Gpu) -> None:
    logits = np.random.default_rng(1).standard_normal((2, 128_256)).astype(np.float32)
    logits[0, 100_000] = logits[0, 128_255] = 9
    logits[1, 128_255] = 9
    tokens, _ = argmax(device, logits, threads=256, loads=4)
    assert tokens.tolist() == [100_000, 128_255]


def test_it_waits_for_the_kernel_that_makes_the_logits(device: Gpu) -> None:
    words = np.random.default_rng(3).integers(0, 2**32, (4, 1100), dtype=np.uint32)
    words[:3, [77, 1000]] = 1  # next to the largest number there is
    step = Step.of(device, np.zeros((3, 1100), np.float32), rows_of(3))
    launch = make_argmax(device, vocab_size=1100, max_rows=64, **SMALL)
    launch_gumbel(device, step.logits, words.reshape(-1))
    launch(step.out, step.logits, step.slots)
    assert step.results()[0].tolist() == [77, 77, 77]


def test_wrong_shapes_are_refused_before_anything_runs(device: Gpu) -> None:
    step = Step.of(device, np.zeros((3, 64), np.float32), rows_of(3))
    with pytest.raises(ShapeError, match=r"argmax logits has shape \[4, 64\], expected \[4, 65\]"):
        make_argmax(device, vocab_size=65, max_rows=64)(step.out, step.logits, step.slots)
    with pytest.raises(ShapeError, match="4 rows, the launcher was made for 1 to 3"):
        make_argmax(device, vocab_size=64, max_rows=3)(step.out, step.logits, step.slots)
    with pytest.raises(ShapeError, match="argmax slots has shape"):
        make_argmax(device, vocab_size=64, max_rows=4)(step.out, step.logits, step.slots.view((3,)))
