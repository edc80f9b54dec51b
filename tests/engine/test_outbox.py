"""Deltas: what a reader gets, in one piece or in many, is what the request has produced, each token once."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from tests.engine.fake_runner import continuation, fake_engine
from tests.engine.fake_tokenizer import FakeTokenizer, text_of
from tinyvllm.batch import Sampled
from tinyvllm.engine.engine import Engine
from tinyvllm.engine.outbox import Delivery
from tinyvllm.outputs import OutputAssembler, OutputDelta, RequestOutput
from tinyvllm.request import SamplingParams
from tinyvllm.step import Done, Pending, Step, StepResult

PROMPT, LENGTH = [3, 1, 4], 8
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "completions": {"n": 3},
    "logprobs": {"logprobs": 2, "prompt_logprobs": 1},
    "stop": {"stop": text_of(continuation(PROMPT, LENGTH))[4:6]},
}


def started(stream: bool = True, **asked: Any) -> Engine:
    engine = fake_engine(tokenizer=FakeTokenizer())
    params = SamplingParams(**{"max_tokens": LENGTH, "ignore_eos": True, **asked})
    engine.add_request("alice", PROMPT, params, stream=stream)
    return engine


def deltas_of(engine: Engine) -> list[OutputDelta]:
    deltas = []
    while engine.has_unfinished_requests():
        deltas += engine.step()
    return deltas


def without_times(output: RequestOutput) -> list[Any]:
    return [output.prompt_token_ids, output.prompt_logprobs, output.outputs, output.finished, output.error]


@pytest.mark.parametrize("asked", ASKED)
def test_the_deltas_of_a_stream_amount_to_the_whole_output(asked: str) -> None:
    (whole,) = deltas_of(started(stream=False, **ASKED[asked]))
    deltas = deltas_of(started(**ASKED[asked]))
    (output,) = OutputAssembler().add(deltas)
    assert whole.output is not None
    assert without_times(output) == without_times(whole.output)
    assert len(deltas) > 1
    assert [delta.prompt is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert output.metrics == deltas[-1].metrics


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("num_unread", [2, 5, 20])
def test_what_nobody_has_read_becomes_one_delta_of_each_completion(asked: str, num_unread: int) -> None:
    (expected,) = OutputAssembler().add(deltas_of(started(**ASKED[asked])))
    engine, deltas = started(**ASKED[asked]), list[OutputDelta]()
    while engine.has_unfinished_requests():
        for _ in range(num_unread):
            if engine.has_live_requests(None):
                engine.advance()
        new = engine.step()
        assert len({delta.index for delta in new}) == len(new) > 0
        deltas += new
    (output,) = OutputAssembler().add(deltas)
    assert without_times(output) == without_times(expected)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("lost", [{0}, {1, 2}, {0, 3, 4}])
def test_lost_deltas_come_again_before_those_that_came_since(asked: str, lost: set[int]) -> None:
    (expected,) = OutputAssembler().add(deltas_of(started(**ASKED[asked])))
    engine, deltas, number = started(**ASKED[asked]), list[OutputDelta](), 0
    outbox = engine._books.outbox
    while engine.has_live_requests(None) or outbox.has_unread(None):
        delivery = Delivery()
        if engine.has_live_requests(None):
            engine.advance()
        new = outbox.take(None, delivery)
        delivery.is_lost = number in lost
        deltas += [] if delivery.is_lost else new
        if engine.has_live_requests(None):
            engine.advance()  # others may step the engine before the owner comes back
        number += 1
    (output,) = OutputAssembler().add(deltas)
    assert without_times(output) == without_times(expected)


def test_an_abort_returns_the_deltas_that_waited() -> None:
    engine = started(n=2)
    engine.advance()
    for _ in range(3):
        engine.advance()
    deltas = engine.abort_request("alice")
    assert {delta.index for delta in deltas} == {0, 1}
    assert not engine.has_unfinished_requests()
    (output,) = OutputAssembler().add(deltas)
    assert [each.finish_reason for each in output.outputs] == ["abort"] * 2
    for each in output.outputs:
        assert each.token_ids == continuation(PROMPT, LENGTH)[: len(each.token_ids)]
        assert each.text == text_of(each.token_ids)
    assert len(output.outputs[0].token_ids) >= 3


def test_an_assembler_knows_what_unfinished_requests_have_produced() -> None:
    engine, assembler = started(), OutputAssembler()
    assert assembler.output_so_far("alice") is None
    assert assembler.add([*engine.step(), *engine.step()]) == []
    output = assembler.output_so_far("alice")
    assert output is not None
    assert (output.finished, output.outputs[0].token_ids) == (False, continuation(PROMPT, 2))


@pytest.mark.parametrize("stream", [True, False])
def test_a_token_takes_no_more_memory_after_a_long_output_than_after_a_short_one(stream: bool) -> None:
    """A copy of all token ids so far, or of all text, would show."""
    engine = fake_engine(tokenizer=FakeTokenizer(), num_blocks=800, max_model_len=3200)
    engine.add_request("alice", PROMPT, SamplingParams(max_tokens=3000, ignore_eos=True), stream=stream)
    engine._runner = Instant()  # type: ignore[assignment]
    engine._books.launcher._runner = engine._runner

    def peak_bytes() -> int:
        engine.step()
        tracemalloc.start()
        engine.step()
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for _ in range(100):
        engine.step()
    short = min(peak_bytes() for _ in range(10))
    for _ in range(2000):
        engine.step()
    long = min(peak_bytes() for _ in range(10))
    assert engine.has_live_requests(None)
    assert long < short + 1000  # 2000 token ids are 8000 bytes as an array, 16,000 in a list


class Instant:
    """A runner that gives every sequence the same token, at once."""

    def launch(self, step: Step) -> Pending:
        return Done(StepResult(Sampled(np.full(len(step.sampled), 5, np.int32)), ()))
