"""Log-probabilities on the device against their definition in float64; ids and ranks are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.batch import NO_LOGPROBS, LogprobColumns
from tinyvllm.device import Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.shapes import Float32, Int32
from tinyvllm.slots import LogprobBuffers
from tinyvllm_samplers.gpu.logprobs import MAX_LISTED, Logprobs

from .sampling import INF, Step, make_sample, rows_of
from .sampling import SMALL as SAMPLE_SIZES
from .support import F32_ROUNDOFF, get, once, poisoned, put

make_logprobs = once(Logprobs)
SMALL: dict[str, Any] = {"threads": 64, "list_size": 72}
SIZES = (1, 3, 31, 65, 300, 1300)


def logprobs(device: Gpu, logits: Float32, chosen: Any, k: int, asked: Any = 0, **sizes: Any) -> LogprobColumns:
    """The columns; the padding row must have been left alone, the logits too."""
    num_rows, vocab_size = logits.shape
    step = Step.of(device, logits, rows_of(num_rows, num_logprobs=asked))
    shape = (num_rows + 1, 1 + k)
    out = LogprobBuffers(
        poisoned(device, shape, np.int32), poisoned(device, shape, np.float32), poisoned(device, shape[:1], np.int32)
    )
    launch = make_logprobs(device, vocab_size=vocab_size, **(sizes or SMALL))
    tokens = put(device, np.append(chosen, 0).astype(np.int32))
    launch(out, step.logits, tokens, step.slots, step.columns.num_logprobs)
    token_ids, values, rank = get(device, out.token_ids), get(device, out.logprobs), get(device, out.rank)
    assert (token_ids[-1] == -1).all()
    assert rank[-1] == -1
    np.testing.assert_array_equal(get(device, step.logits)[:-1], logits)
    return LogprobColumns(token_ids[:-1], values[:-1], rank[:-1])


def check(logits: Float32, chosen: Int32, k: int, got: LogprobColumns) -> None:
    expected = logprob_columns(logits, chosen, k)
    np.testing.assert_array_equal(got.token_ids, expected.token_ids)
    np.testing.assert_array_equal(got.rank, expected.rank)
    x = logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64)
    exact = np.take_along_axis(x - np.log(np.exp(x).sum(axis=1, keepdims=True)), expected.token_ids, axis=1)
    # x - max rounds once; exp is right to 2 ulp, and so is the sum, whose logarithm is then off by as much; each of
    # the masses is rounded to 2^-45; the result rounds once.
    error = F32_ROUNDOFF * (5 + 2 * np.abs(exact)) + logits.shape[1] * 2.0**-45
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(got.logprobs[~finite], exact[~finite])
    np.testing.assert_array_less(np.abs(got.logprobs[finite] - exact[finite]), error[finite])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.integers(1, 4), st.integers(0, MAX_LISTED), st.integers(0, 2**32 - 1))
def test_they_are_their_definition(device: Gpu, vocab_size: int, num_rows: int, k: int, seed: int) -> None:
    k = min(k, vocab_size)
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((num_rows, vocab_size)) * rng.choice([0.0, 0.5, 3.0, 50.0, 1e6], (num_rows, 1))
    logits = np.where(rng.random((num_rows, 1)) < 0.4, np.round(logits), logits)
    logits[rng.random(logits.shape) < rng.choice([0, 0.9])] = -INF
    logits[np.arange(num_rows), rng.integers(0, vocab_size, num_rows)] = 1.5
    logits = logits.astype(np.float32)
    chosen = rng.integers(0, vocab_size, num_rows).astype(np.int32)
    check(logits, chosen, k, logprobs(device, logits, chosen, k))


@pytest.mark.parametrize("bad", [np.nan, INF, "all -inf"])
def test_rows_that_ask_for_none_or_are_corrupt_get_nan_and_touch_no_other(device: Gpu, bad: Any) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 130)).astype(np.float32)
    chosen = np.array([3, 4, 129, 0], np.int32)
    if bad == "all -inf":
        logits[2] = -INF
    else:
        logits[2, 77] = bad
    got = logprobs(device, logits, chosen, 5, asked=[5, NO_LOGPROBS, 2, 0])
    assert np.isnan(got.logprobs[1:3]).all()
    assert (got.token_ids[1:3] == 0).all()
    assert got.rank[1:3].tolist() == [0, 0]
    pick = np.array([0, 3])
    some = LogprobColumns(got.token_ids[pick], got.logprobs[pick], got.rank[pick])
    check(logits[pick], chosen[pick], 5, some)


def test_company_and_block_sizes_change_no_bit(device: Gpu) -> None:
    rng = np.random.default_rng(4)
    logits = (rng.standard_normal((9, 700)) * 3).astype(np.float32)
    chosen = rng.integers(0, 700, 9).astype(np.int32)
    together = logprobs(device, logits, chosen, 20)
    for pick, sizes in (([4], SMALL), (rng.permutation(9), SMALL), (rng.permutation(9), {"threads": 256})):
        got = logprobs(device, logits[pick], chosen[pick], 20, **sizes)
        for name in ("token_ids", "logprobs", "rank"):
            np.testing.assert_array_equal(getattr(got, name), getattr(together, name)[pick])


def test_they_follow_the_sampler_without_the_host(device: Gpu) -> None:
    rng = np.random.default_rng(8)
    logits = (rng.standard_normal((5, 1300)) * 2).astype(np.float32)
    step = Step.of(device, logits, rows_of(5, num_logprobs=3))
    sample = make_sample(device, vocab_size=1300, max_rows=64, **SAMPLE_SIZES)
    launch = make_logprobs(device, vocab_size=1300, **SMALL)
    out = LogprobBuffers.allocate(device, 6, 3)
    sample(step.out, step.logits, step.columns, step.slots, step.positions, may_cut=False)
    launch(out, step.logits, step.out.token_ids, step.slots, step.columns.num_logprobs)
    got = LogprobColumns(*(get(device, buffer)[:-1] for buffer in (out.token_ids, out.logprobs, out.rank)))
    check(logits, step.results()[0], 3, got)


def test_the_sizes_of_a_real_model(device: Gpu) -> None:
    logits = (np.random.default_rng(1).standard_normal((2, 128_256)) * 3).astype(np.float32)
    chosen = np.array([5, 128_255], np.int32)
    check(logits, chosen, 20, logprobs(device, logits, chosen, 20, threads=1024))


def test_wrong_shapes_are_refused_before_anything_runs(device: Gpu) -> None:
    logits = np.zeros((2, 100), np.float32)
    with pytest.raises(ShapeError, match="65 columns, expected 0 to 64"):
        logprobs(device, logits, [0, 0], 65)
    with pytest.raises(ShapeError, match="chosen has shape"):
        logprobs(device, logits, [0], 3)
