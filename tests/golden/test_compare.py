"""The comparison itself: a right answer passes, planted mistakes do not, and near ties are excused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .cases import Golden
from .compare import TOLERANCE, compare

NUM_PROMPT, NUM_STEPS, VOCAB_SIZE = 5, 8, 11


def test_the_golden_answer_itself_has_no_complaint() -> None:
    rows = random_rows()
    comparison = compare(output_of(rows), golden_of(rows))
    assert comparison.complaints == ()
    assert comparison.num_steps == NUM_STEPS
    assert comparison.worst < 1e-6


def off_in_the_prompt(output: Any) -> None:
    shift(output.prompt_logprobs[2], TOLERANCE * 2)


def off_at_the_last_step(output: Any) -> None:
    shift(output.outputs[0].logprobs[-1], TOLERANCE * 2)


def one_token_unreported(output: Any) -> None:
    del output.prompt_logprobs[1][0]


def nan_for_one_token(output: Any) -> None:
    output.outputs[0].logprobs[3][0].logprob = float("nan")


def prompt_logprobs_shifted_by_one(output: Any) -> None:
    output.prompt_logprobs = [None, output.prompt_logprobs[1], *output.prompt_logprobs[1:-1]]


def one_step_too_few(output: Any) -> None:
    output.outputs[0].token_ids.pop()
    output.outputs[0].logprobs.pop()


def another_token_though_it_is_not_close(output: Any) -> None:
    mapping = output.outputs[0].logprobs[4]
    token = next(token for token, entry in mapping.items() if entry.rank == 3)
    mapping[token].rank = 1
    output.outputs[0].token_ids[4] = token


@pytest.mark.parametrize(
    "mistake",
    [
        off_in_the_prompt,
        off_at_the_last_step,
        one_token_unreported,
        nan_for_one_token,
        prompt_logprobs_shifted_by_one,
        one_step_too_few,
        another_token_though_it_is_not_close,
    ],
)
def test_a_planted_mistake_is_reported(mistake: Callable[[Any], None]) -> None:
    rows = random_rows()
    output = output_of(rows)
    mistake(output)
    with np.errstate(invalid="ignore"):
        assert compare(output, golden_of(rows)).complaints


def test_a_near_tie_may_go_either_way_and_ends_the_comparison() -> None:
    rows = random_rows()
    step = 3
    first, second = np.argsort(-rows[NUM_PROMPT - 1 + step])[:2]
    rows[NUM_PROMPT - 1 + step, second] = rows[NUM_PROMPT - 1 + step, first] - TOLERANCE / 10
    golden = golden_of(rows)

    other = rows.copy()
    other[NUM_PROMPT - 1 + step, second] = rows[NUM_PROMPT - 1 + step, first] + TOLERANCE / 10
    other[NUM_PROMPT + step :] = random_rows(seed=2)[NUM_PROMPT + step :]  # another token, so another text after it
    comparison = compare(output_of(other), golden)
    assert comparison.complaints == ()
    assert comparison.num_steps == step


def random_rows(seed: int = 1) -> NDArray[np.float64]:
    """``[S - 1, V]`` log-probabilities whose top two are well apart."""
    logits = np.random.default_rng(seed).permuted(
        np.tile(np.arange(VOCAB_SIZE) * 0.5, (NUM_PROMPT + NUM_STEPS - 1, 1)), axis=1
    )
    log_normalizers: NDArray[np.float64] = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits - log_normalizers


def golden_of(rows: NDArray[np.float64]) -> Golden:
    prompt = np.arange(NUM_PROMPT, dtype=np.int32)
    greedy = rows[NUM_PROMPT - 1 :].argmax(axis=1).astype(np.int32)
    sequence = np.concatenate([prompt, greedy])
    return Golden(
        prompt=prompt,
        greedy=greedy,
        top_two=-np.sort(-rows[NUM_PROMPT - 1 :], axis=1)[:, :2].astype(np.float32),
        following=rows[np.arange(len(rows)), sequence[1:]].astype(np.float32),
        rows=np.arange(len(rows), dtype=np.int32),
        logprobs=rows.astype(np.float32),
    )


def output_of(rows: NDArray[np.float64]) -> Any:
    """What an engine that computes ``rows`` would return, in the shape of a ``RequestOutput``."""
    mappings = [reported(row) for row in rows]
    completion = SimpleNamespace(
        token_ids=rows[NUM_PROMPT - 1 :].argmax(axis=1).tolist(),
        logprobs=mappings[NUM_PROMPT - 1 :],
        finish_reason="length",
    )
    return SimpleNamespace(
        prompt_token_ids=list(range(NUM_PROMPT)),
        prompt_logprobs=[None, *mappings[: NUM_PROMPT - 1]],
        outputs=[completion],
    )


def reported(row: NDArray[np.float64]) -> dict[int, SimpleNamespace]:
    order = np.argsort(-row)
    return {int(token): SimpleNamespace(logprob=float(row[token]), rank=rank + 1) for rank, token in enumerate(order)}


def shift(mapping: dict[int, SimpleNamespace], by: float) -> None:
    mapping[0].logprob += by
