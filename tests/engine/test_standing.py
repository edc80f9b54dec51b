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
