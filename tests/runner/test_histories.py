"""What a sampler of the host reads of earlier steps, the runner keeps: of the right sequence, and no token missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.device_runs import random_prompts, start
from tests.engine.test_device_engine import SMALL, device  # noqa: F401 -- a fixture
from tinyvllm.batch import SampleCall, Sampled, SamplingRows
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.runner.histories import Histories, StepHistories
from tinyvllm.shapes import Int32
from tinyvllm.step import Started, StartedSequence

PENALTY = SamplingParams(presence_penalty=1.0)
PLAIN = SamplingParams()


def ints(*values: int) -> Int32:
    return np.array(values, np.int32)


def give(histories: Histories, slot: int, *token_ids: int, params: SamplingParams = PENALTY) -> StartedSequence:
    sequence = StartedSequence(params, SamplingRules(), ints(*token_ids), len(token_ids))
    rows = SamplingRows.of(1, has_rules=params.has_rules)
    histories.start(Started(ints(slot), rows, [sequence]))
    return sequence


def of(histories: Histories, slot: int, position: int) -> StepHistories:
    return histories.of(ints(slot), SamplingRows.of(1, position=position, has_rules=True))


def all_of(histories: Histories, slot: int) -> list[int]:
    (tokens,) = of(histories, slot, 0).tokens
    assert tokens is not None
    return [*map(int, tokens.all)]


def test_a_late_token_goes_to_who_had_the_slot_when_the_step_was_launched() -> None:
    histories = Histories()
    give(histories, 3, 7, 8)
    first, wasted = of(histories, 3, 2), of(histories, 3, 3)
    first.append(ints(9))
    give(histories, 3, 1, 2, 5)  # as long as the history before it: the position does not tell them apart
    wasted.append(ints(4))
    assert all_of(histories, 3) == [1, 2, 5]
    of(histories, 3, 3).append(ints(6))
    assert all_of(histories, 3) == [1, 2, 5, 6]


def test_a_token_is_added_once_however_often_a_step_is_waited_for() -> None:
    histories = Histories()
    started = give(histories, 0, 7)
    step = of(histories, 0, 1)
    step.append(ints(8))
    step.append(ints(8))
    assert all_of(histories, 0) == [7, 8]
    assert started.token_ids.tolist() == [7]


def test_a_sequence_of_which_a_step_was_lost_takes_no_more_tokens() -> None:
    histories = Histories()
    give(histories, 0, 7)
    of(histories, 0, 2).append(ints(9))
    assert all_of(histories, 0) == [7]


def test_rows_without_rules_have_no_history() -> None:
    histories = Histories()
    give(histories, 0, 7)
    give(histories, 1, 8, params=PLAIN)
    rows = SamplingRows.of(2, position=ints(1, 1), has_rules=np.array([False, True]))
    step = histories.of(ints(1, 0), rows)
    step.append(ints(5, 6))
    none, tokens = step.tokens
    assert none is None
    assert tokens is not None
    assert (tokens.prompt.tolist(), tokens.output.tolist(), tokens.params) == ([7], [6], PENALTY)
    give(histories, 0, 4, params=PLAIN)
    with pytest.raises(KeyError):  # rather than another sequence's tokens
        of(histories, 0, 1)


def test_the_host_samples_with_all_tokens_that_the_gpu_chose_before(
    device: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests for all log-probabilities come between others, whose tokens the GPU had chosen a step late."""
    llm = start(SMALL, device, scheduler={"max_num_seqs": 3, "async_scheduling": True})
    engine, runner = llm.engine, llm.engine._runner
    sampler: Any = runner._host_sampler  # type: ignore[attr-defined]
    sample, num_outputs = sampler.sample, list[int]()

    def checked(call: SampleCall) -> Sampled:
        live = [each.tokens for each in engine._books.requests.completions()]
        known = {tuple(each.prompt.tolist()): each.all.tolist() for each in live}
        for has_rules, tokens in zip(call.rows.has_rules.tolist(), call.tokens, strict=True):
            assert has_rules == (tokens is not None)
            if tokens is not None:
                assert tokens.all.tolist() == known[tuple(tokens.prompt.tolist())]
                num_outputs.append(len(tokens.output))
        sampled: Sampled = sample(call)
        return sampled

    monkeypatch.setattr(sampler, "sample", checked)
    prompts = random_prompts(SMALL, (9, 5, 7, 4, 6, 3, 8, 5))
    for i, prompt in enumerate(prompts):
        rules: dict[str, Any] = {"logprobs": -1, "max_tokens": 2} if i % 3 == 2 else {"max_tokens": 6 + i}
        if i % 4:
            rules["presence_penalty"] = 1.5
        engine.add_request(str(i), prompt, SamplingParams(temperature=0, ignore_eos=True, **rules))
    ahead = 0
    while engine.has_unfinished_requests():
        engine.step()
        ahead += len(engine._books.in_flight)
    assert ahead > 0, "no step was launched ahead"
    assert max(num_outputs) > 4


def test_a_wasted_step_adds_nothing_to_the_next_owner_of_its_slot(device: str) -> None:  # noqa: F811
    """The token of the wasted step has the position at which the next sequence begins: that does not protect it."""
    llm = start(SMALL, device, scheduler={"max_num_seqs": 1, "async_scheduling": True})
    (prompt,) = random_prompts(SMALL, (5,))
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, repetition_penalty=1.9)
    alone = list(llm.generate([list(prompt)], params)[0].outputs[0].token_ids)
    assert len(set(alone[:3])) == 3
    (following,) = random_prompts(SMALL, (len(prompt) + 3,), seed=1)
    stopping = params.clone(stop_token_ids=[alone[2]])
    first, second = llm.generate([list(prompt), list(following)], [stopping, params])
    assert (first.outputs[0].token_ids, first.outputs[0].finish_reason) == (alone[:3], "stop")
    runner: Any = llm.engine._runner
    assert all_of(runner._histories, 0) == [*following, *second.outputs[0].token_ids]
