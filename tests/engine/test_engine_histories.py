"""The engine as a state machine: whatever comes and goes, blocks add up and every request ends with its own tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.engine.fake_runner import VOCAB_SIZE, complete, fake_engine
from tinyvllm.errors import RequestError
from tinyvllm.outputs import RequestOutput
from tinyvllm.request import SamplingParams

MAX_MODEL_LEN = 48


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        scheduler=st.sampled_from(["continuous", "static"]),
        num_blocks=st.integers(3, 24),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 24),
        lag=st.integers(0, 1),
        is_late=st.booleans(),
    )
    def start(self, **sizes: Any) -> None:
        self.num_blocks, self.block_size = sizes["num_blocks"], sizes["block_size"]
        self.engine = fake_engine(max_model_len=MAX_MODEL_LEN, **sizes)
        self.expected: dict[str, tuple[list[int], str, int]] = {}
        self.finished: dict[str, RequestOutput] = {}
        self.num_requests = 0

    @rule(
        prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=30),
        max_tokens=st.integers(1, 20),
        n=st.integers(1, 3),
        stream=st.booleans(),
        presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 1.0]),
    )
    def add(self, prompt: list[int], max_tokens: int, n: int, stream: bool, presence_penalty: float) -> None:
        request_id = f"r{self.num_requests}"
        self.num_requests += 1
        params = SamplingParams(max_tokens=max_tokens, n=n, presence_penalty=presence_penalty)
        most = min(len(prompt) + max_tokens, MAX_MODEL_LEN)
        if -(-(most - 1) // self.block_size) > self.num_blocks:
            with pytest.raises(RequestError, match="can never fit"):
                self.engine.add_request(request_id, prompt, params, stream=stream)
            return
        self.engine.add_request(request_id, prompt, params, stream=stream)
        output, reason = complete(prompt, min(max_tokens, MAX_MODEL_LEN - len(prompt)))
        self.expected[request_id] = (output, reason, n)

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.take(self.engine.step())

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        live = sorted(set(self.expected) - set(self.finished))
        if live:
            request_id = data.draw(st.sampled_from(live))
            output = self.engine.abort_request(request_id)
            assert output is not None
            assert output.finished
            for completion in output.outputs:
                whole = self.expected[request_id][0]
                assert completion.token_ids == whole[: len(completion.token_ids)]
            del self.expected[request_id]

    def take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            assert output.request_id not in self.finished, "news of a request that has ended"
            if output.finished:
                self.finished[output.request_id] = output

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(20_000):
            if not self.engine.has_unfinished_requests():
                break
            self.take(self.engine.step())
        else:
            pytest.fail("the engine never came to an end")
        self.engine.check()
        assert set(self.finished) == set(self.expected)
        for request_id, (tokens, reason, n) in self.expected.items():
            completions = self.finished[request_id].outputs
            assert [c.token_ids for c in completions] == [tokens] * n
            assert {c.finish_reason for c in completions} == {reason}


TestEngineHistories = EngineMachine.TestCase
TestEngineHistories.settings = settings(
    max_examples=120, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
