"""The engine as a state machine: whatever comes, goes or fails, blocks add up, and every request ends with its own
tokens, or with an error of ours if a failure concerned it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.fake_runner import VOCAB_SIZE, complete, fake_engine, logprob_of
from tests.engine.fake_tokenizer import FakeTokenizer
from tests.engine.faults import EXCEPTIONS, Faults
from tests.engine.interrupts import ENGINE_FILES, Interruption, interrupt_recovery, interrupting
from tests.engine.watch import Watch
from tinyvllm.errors import DeviceError, TinyvllmError
from tinyvllm.outputs import CompletionOutput, OutputAssembler, OutputDelta, RequestOutput
from tinyvllm.request import SamplingParams

MAX_MODEL_LEN = 48
PLACES = [
    "schedule", "launch", "sample", "launched", "wait", "allocate", "allocated", "share", "shared", "release",
    "released", "tokenizer", "can_run_ahead",
]  # fmt: skip
INTERRUPTIONS = st.builds(Interruption, st.sampled_from(ENGINE_FILES), st.integers(0, 300))


@dataclass(frozen=True)
class Expected:
    """What a request yields alone.

    Attributes:
        prompt: its tokens.
        params: as asked.
        tokens, text, reason: of each completion.
    """

    prompt: list[int]
    params: SamplingParams
    tokens: list[int]
    text: str
    reason: str


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        scheduler=st.sampled_from(["continuous", "static"]),
        cache_tokens=st.integers(MAX_MODEL_LEN, MAX_MODEL_LEN + 24),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_num_seqs=st.sampled_from([1, 3, 4, 5]),
        budget=st.sampled_from([1, 5, 8, 16, 24]),
        lag=st.integers(0, 1),
        is_late=st.booleans(),
        num_preemptions=st.sampled_from([0, 0, 5]),
    )
    def start(self, **sizes: Any) -> None:
        sizes["num_blocks"] = sizes.pop("cache_tokens") // sizes["block_size"]
        self.faults, self.watch = Faults(), Watch()
        self.engine = fake_engine(
            max_model_len=MAX_MODEL_LEN,
            tokenizer=FakeTokenizer(self.faults),
            faults=self.faults,
            watch=self.watch,
            **sizes,
        )
        self.expected: dict[str, Expected] = {}
        self.ended: dict[str, RequestOutput] = {}
        self.assembler = OutputAssembler()
        self.aborted: set[str] = set()
        self.perhaps: set[str] = set()  # whose `add_request` or `abort_request` was interrupted
        self.may_fail: set[str] = set()
        self.num_tokenizer_faults = 0
        self.num_requests = 0

    # ------------------------------------------------------------ what happens

    @rule(
        prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=24),
        stop=st.one_of(st.none(), st.integers(0, 20)),
        interruption=st.one_of(st.none(), st.none(), st.none(), INTERRUPTIONS),
        priority=st.integers(-2, 2),
        stream=st.booleans(),
        asked=st.fixed_dictionaries(
            {"max_tokens": st.integers(1, 24), "n": st.sampled_from([1, 1, 1, 2, 3])},
            optional={
                "presence_penalty": st.just(1.0),
                "frequency_penalty": st.just(0.5),  # a rule with which a step may be launched ahead
                "logprobs": st.integers(0, 2),
                "prompt_logprobs": st.integers(0, 2),
                "min_p": st.sampled_from([0.25, 0.5]),
                "top_k": st.integers(1, 5),
            },
        ),
    )
    def add(
        self,
        prompt: list[int],
        stop: int | None,
        interruption: Interruption | None,
        priority: int,
        stream: bool,
        asked: dict[str, Any],
    ) -> None:
        request_id = f"r{self.num_requests}"
        self.num_requests += 1
        most = min(len(prompt) + asked["max_tokens"], MAX_MODEL_LEN)
        if stop is not None:  # the text of two tokens that follow each other, or nearly
            _, text, _ = complete(prompt, most - len(prompt))
            asked = {**asked, "stop": text[stop : stop + 2] or "never"}
        params = SamplingParams(**asked)
        tokens, text, reason = complete(prompt, most - len(prompt), asked.get("stop"))
        expected = Expected(prompt, params, tokens, text, reason)

        def add() -> None:
            self.expected[request_id] = expected
            self.engine.add_request(request_id, prompt, params, priority=priority, deadline=priority, stream=stream)

        error = self.call(add, {request_id}, interruption)
        if isinstance(error, KeyboardInterrupt):
            self.perhaps.add(request_id)
        elif error is not None:
            del self.expected[request_id]

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.step_once()

    @rule(interruption=INTERRUPTIONS)
    def step_that_is_interrupted(self, interruption: Interruption) -> None:
        self.step_once(interruption)

    @rule(data=st.data(), interruption=st.one_of(st.none(), INTERRUPTIONS))
    def abort(self, data: st.DataObject, interruption: Interruption | None) -> None:
        live = sorted(set(self.expected) - set(self.ended))
        if not live:
            return
        request_id = data.draw(st.sampled_from(live))
        deltas: list[OutputDelta] = []
        error = self.call(lambda: deltas.extend(self.engine.abort_request(request_id)), {request_id}, interruption)
        if error is not None:
            assert isinstance(error, KeyboardInterrupt), "an abort does not fail"
            self.aborted.add(request_id)
        elif deltas:  # otherwise it had ended already, and its last delta comes with a step
            assert deltas[-1].finished
            self.aborted.add(request_id)
            self.take(deltas)

    @rule(
        place=st.sampled_from(PLACES),
        exception=st.sampled_from(list(EXCEPTIONS)),
        calls=st.integers(0, 6),
        again=st.one_of(st.none(), st.none(), INTERRUPTIONS),
    )
    def let_fail(self, place: str, exception: str, calls: int, again: Interruption | None) -> None:
        self.faults.arm(place, exception, calls)
        if again is not None:
            interrupt_recovery(self.engine, again)

    @precondition(lambda self: self.num_requests > 8)
    @rule(exception=st.sampled_from(list(EXCEPTIONS)))
    def let_device_die(self, exception: str) -> None:
        self.faults.arm("recover", exception)

    # ------------------------------------------------------------ what must hold

    def call(
        self, act: Callable[[], Any], concerned: set[str], interruption: Interruption | None
    ) -> BaseException | None:
        """Call the engine; what it raised. Whoever may be concerned by a failure is remembered."""
        num_fired = len(self.faults.fired)
        self.watch.touched = set()
        in_flight = {each.request.request_id for step in self.engine._books.in_flight for each in step.computed}
        raised: BaseException | None = None
        try:
            with interrupting(interruption):
                act()
        except (TinyvllmError, KeyboardInterrupt) as error:
            raised = error
        if interruption is not None and interruption.function in ("read_back", "Engine._read_back"):
            self.may_fail |= in_flight  # a step concerns its requests a little before it is waited for
        fired = self.faults.fired[num_fired:]
        places = {place for place, _ in fired}
        if isinstance(raised, KeyboardInterrupt) or places - {"schedule", "tokenizer", "recover"}:
            self.may_fail |= self.watch.touched | concerned
        if "schedule" in places:
            self.may_fail |= self.watch.asked
        if ("tokenizer", "KeyboardInterrupt") in fired:
            self.may_fail |= self.watch.touched | concerned
        self.num_tokenizer_faults += "tokenizer" in places
        is_told = isinstance(raised, KeyboardInterrupt) or self.is_lost
        assert raised is None or fired or is_told or concerned, f"raised though nothing failed: {raised!r}"
        return raised

    @property
    def is_lost(self) -> bool:
        return any(place == "recover" and name != "KeyboardInterrupt" for place, name in self.faults.fired)

    def step_once(self, interruption: Interruption | None = None) -> None:
        deltas: list[OutputDelta] = []
        was_lost = self.is_lost
        error = self.call(lambda: deltas.extend(self.engine.step()), set(), interruption)
        self.take(deltas)
        if was_lost and not deltas:
            assert isinstance(error, (DeviceError, KeyboardInterrupt)), "the engine goes on without its device"

    def take(self, deltas: list[OutputDelta]) -> None:
        assert len({(delta.request_id, delta.index) for delta in deltas}) == len(deltas), "deltas that are not merged"
        for delta in deltas:
            assert delta.token_ids or delta.finish_reason is not None, "an empty delta"
            finished = self.assembler.add([delta])
            output = finished[0] if finished else self.assembler.output_so_far(delta.request_id)
            assert output is not None
            self.check_output(output)

    def check_output(self, output: RequestOutput) -> None:
        request_id = output.request_id
        assert request_id in self.expected, "an output of a request that was refused"
        assert request_id not in self.ended, "an output of a request that has ended"
        expected = self.expected[request_id]
        assert output.prompt_token_ids == expected.prompt
        for completion in output.outputs:
            self.check_completion(completion, expected, output)
        if output.finished:
            assert [completion.index for completion in output.outputs] == list(range(expected.params.n))
        if output.prompt_logprobs is not None:
            told = [next(iter(each.items())) for each in output.prompt_logprobs[1:] if each]
            pairs = list(zip(expected.prompt[1:], expected.prompt, strict=False))[: len(told)]
            assert [(token, each.logprob) for token, each in told] == [(t, logprob_of(t, b)) for t, b in pairs]
            if output.finished and output.error is None and request_id not in self.aborted:
                assert len(output.prompt_logprobs) == len(expected.prompt)
        if output.finished:
            self.ended[request_id] = output

    def check_completion(self, completion: CompletionOutput, expected: Expected, output: RequestOutput) -> None:
        tokens = completion.token_ids
        assert tokens == expected.tokens[: len(tokens)], "tokens that the request does not have alone"
        assert expected.text.startswith(completion.text) or completion.finish_reason == "abort"
        if expected.params.logprobs is not None:
            assert completion.logprobs is not None
            befores = [expected.prompt[-1], *tokens]
            told = [(next(iter(each)), next(iter(each.values())).logprob) for each in completion.logprobs]
            assert told == [(t, logprob_of(t, b)) for t, b in zip(tokens, befores, strict=False)]
            assert completion.cumulative_logprob == pytest.approx(sum(value for _, value in told))
        if completion.finish_reason == "abort":
            assert output.error is not None or output.request_id in self.aborted
        elif completion.finish_reason is not None:
            assert (tokens, completion.text, completion.finish_reason) == (
                expected.tokens,
                expected.text,
                expected.reason,
            )

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "engine"):
            try:
                self.engine.check()
            except KeyboardInterrupt:  # what was interrupted twice is mended here, and interrupted again
                self.engine.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.faults.disarm()
        vars(self.engine._recovery).pop("recover", None)
        for _ in range(20_000):
            if not self.engine.has_unfinished_requests():
                break
            self.step_once()
        else:
            pytest.fail("the engine never came to an end")
        self.adds_up()
        assert set(self.expected) - set(self.ended) <= self.perhaps, "a request without an end"
        failed = {request_id for request_id, output in self.ended.items() if output.error is not None}
        if not self.is_lost:
            assert len(failed - self.may_fail) <= self.num_tokenizer_faults, "a request that no failure concerned"
        for request_id, output in self.ended.items():
            if output.error is not None:
                assert isinstance(output.error, TinyvllmError)
            elif request_id not in self.aborted:
                assert {each.finish_reason for each in output.outputs} == {self.expected[request_id].reason}
        if self.is_lost:
            with pytest.raises(DeviceError, match="device is lost"):
                self.engine.add_request("late", [1])
            return
        self.engine.add_request("last", [1, 2], SamplingParams(max_tokens=1))
        self.expected["last"] = Expected([1, 2], SamplingParams(max_tokens=1), *complete([1, 2], 1))
        while "last" not in self.ended:
            self.step_once()
        assert self.ended["last"].error is None


class LongEngineMachine(EngineMachine):
    """The same, for longer: its own class, because hypothesis makes one test of each."""


_ANY: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
TestEngineHistories = EngineMachine.TestCase
TestEngineHistories.settings = settings(max_examples=200, stateful_step_count=25, **_ANY)
TestLongEngineHistories = pytest.mark.slow(LongEngineMachine.TestCase)
TestLongEngineHistories.settings = settings(max_examples=2_000, stateful_step_count=40, **_ANY)
