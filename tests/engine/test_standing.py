"""A decision that stands ends at any moment, and nothing is lost by it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.fake_runner import complete, fake_engine
from tinyvllm.interfaces import Schedule, SchedulerView
from tinyvllm.outputs import RequestOutput
from tinyvllm.request import SamplingParams


class PassesOver:
    """Lets the first sequence decode by itself, and then leaves it out for two steps when a second one comes."""

    def __init__(self) -> None:
        self._num_left_out = 0

    def schedule(self, view: SchedulerView) -> Schedule:
        rows = np.concatenate([view.running, view.waiting])
        if len(rows) > 1 and self._num_left_out < 2:
            self._num_left_out += 1
            rows = rows[1:]
        left = view.num_tokens[rows] - view.num_computed[rows]
        are_decodes = len(view.waiting) == 0 and bool((left == 1).all())
        return Schedule(rows, left, stands=are_decodes and len(rows) == 1)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_a_sequence_that_is_passed_over_goes_on_from_its_own_token(lag: int, num_steps: int) -> None:
    engine = fake_engine(PassesOver(), lag=lag, is_late=True)
    prompts = {"first": [5, 6, 7], "second": [8, 9]}
    engine.add_request("first", prompts["first"], SamplingParams(max_tokens=12))
    finished: dict[str, RequestOutput] = {}
    for _ in range(num_steps):
        engine.step()
    engine.add_request("second", prompts["second"], SamplingParams(max_tokens=8))
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        engine.check()
    for name, most in (("first", 12), ("second", 8)):
        assert finished[name].outputs[0].token_ids == complete(prompts[name], most)[0]


class Counting:
    """Everything there is, as long as it fits; notes how often it was asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def schedule(self, view: SchedulerView) -> Schedule:
        self.num_asked += 1
        rows = np.concatenate([view.running, view.waiting])
        left = view.num_tokens[rows] - view.num_computed[rows]
        return Schedule(rows, left, stands=len(view.waiting) == 0 and len(rows) > 0 and bool((left == 1).all()))


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("ends", ["by length", "by a stop token"])
def test_sequences_that_end_leave_the_others_to_go_on(ends: str, lag: int, is_late: bool) -> None:
    """The scheduler decides the prompts and the first decode step, and is not asked again."""
    scheduler = Counting()
    engine = fake_engine(scheduler, lag=lag, is_late=is_late, num_blocks=200, max_num_seqs=6, budget=64)
    prompts = [[5 + i, 6, 7 + i] for i in range(6)]
    lengths = [9, 30, 17, 17, 4, 25]
    expected = []
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        tokens, _ = complete(prompt, length)
        params = SamplingParams(max_tokens=length)
        if ends == "by a stop token":
            params = SamplingParams(max_tokens=50, ignore_eos=True, stop_token_ids=[tokens[-1]])
            tokens = tokens[: tokens.index(tokens[-1]) + 1]
        expected.append(tokens)
        engine.add_request(str(i), prompt, params, stream=False)
    finished: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        engine.check()
    assert [finished[str(i)].outputs[0].token_ids for i in range(6)] == expected
    assert scheduler.num_asked <= 3


@pytest.mark.parametrize("lag", [0, 1])
def test_a_sequence_that_comes_while_others_leave_is_scheduled(lag: int) -> None:
    scheduler = Counting()
    engine = fake_engine(scheduler, lag=lag, is_late=True, num_blocks=200, max_num_seqs=6, budget=64)
    prompts, lengths = [[5 + i, 6] for i in range(8)], [3, 20, 6, 12, 5, 9, 7, 4]
    finished: dict[str, RequestOutput] = {}
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        engine.add_request(str(i), prompt, SamplingParams(max_tokens=length), stream=False)
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        engine.check()
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        engine.check()
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        assert finished[str(i)].outputs[0].token_ids == complete(prompt, length)[0]
