"""One ``LLM``, many callers: each gets its own answers, whoever else asks, is interrupted or steps the engine."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tinyvllm import LLM, SamplingParams
from tinyvllm.errors import PluginError, RequestError, TinyvllmError
from tinyvllm.outputs import OutputAssembler, OutputDelta, RequestOutput

PROMPTS = ["58+64=", "sort 31425=", "reverse apple=", "Once upon a time", "copy xyz=", "12+7="]
GREEDY = SamplingParams(temperature=0, max_tokens=8)
LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", device="cpu", max_model_len=128, batch_invariant=True, scheduler={"max_num_seqs": 8})


@pytest.fixture(autouse=True)
def adds_up(llm: LLM) -> Iterator[None]:
    yield
    llm.engine.check()
    assert not llm.engine.has_unfinished_requests()


def params_of(rng: random.Random) -> SamplingParams:
    kinds: Sequence[dict[str, Any]] = (
        {"temperature": 0},
        {"temperature": 1.3, "seed": rng.randrange(99)},
        {"temperature": 1, "seed": rng.randrange(99), "top_p": 0.7, "n": 2},
        {"temperature": 0, "presence_penalty": 1.5, "logprobs": 3},
        {"temperature": 0.7, "seed": rng.randrange(99), "stop": ["e"], "prompt_logprobs": 1},
    )
    return SamplingParams(max_tokens=rng.randrange(1, 24), **rng.choice(kinds))


def call_of(number: int) -> tuple[list[str], list[SamplingParams]]:
    rng = random.Random(number)
    count = rng.randrange(1, 5)
    return [rng.choice(PROMPTS) for _ in range(count)], [params_of(rng) for _ in range(count)]


def answers(outputs: Sequence[RequestOutput]) -> list[Any]:
    """All that an answer says, but for ids and times."""
    return [(output.prompt, output.prompt_logprobs, output.outputs, output.error) for output in outputs]


def alone(llm: LLM, number: int) -> list[Any]:
    prompts, params = call_of(number)
    return answers([llm.generate(p, q, use_tqdm=False)[0] for p, q in zip(prompts, params, strict=True)])


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[list[Any]]:
    return [alone(llm, number) for number in range(48)]


def in_threads(llm: LLM, numbers: Sequence[int], num_threads: int) -> tuple[dict[int, Any], list[threading.Thread]]:
    """Starts threads that make these calls in turn; what each call answered, or raised."""
    got: dict[int, Any] = {}

    def work(mine: Sequence[int]) -> None:
        for number in mine:
            try:
                got[number] = answers(llm.generate(*call_of(number), use_tqdm=False))
            except BaseException as error:
                got[number] = error

    threads = [threading.Thread(target=work, args=(numbers[i::num_threads],)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    return got, threads


def test_48_calls_from_8_threads_are_answered_as_each_is_alone(llm: LLM, expected: list[list[Any]]) -> None:
    got, threads = in_threads(llm, range(48), 8)
    for thread in threads:
        thread.join()
    assert [got[number] for number in range(48)] == expected


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def interrupted_after(llm: LLM, seconds: float) -> None:
    before = signal.signal(signal.SIGALRM, raise_interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            llm.generate([PROMPTS[3]] * 4, LONG.__class__(temperature=0, max_tokens=100, ignore_eos=True))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_control_c_ends_the_call_that_it_hit_and_no_other(llm: LLM, expected: list[list[Any]]) -> None:
    got, threads = in_threads(llm, range(24), 6)
    rng = random.Random(5)
    while any(thread.is_alive() for thread in threads):
        interrupted_after(llm, 0.002 + 0.05 * rng.random())
    assert [got[number] for number in range(24)] == expected[:24]


def test_a_call_after_an_interrupted_one_is_answered_right(llm: LLM) -> None:
    rng = random.Random(6)
    for _ in range(40):
        interrupted_after(llm, 0.001 + 0.03 * rng.random())
        llm.engine.check()
        assert llm.engine.stats().num_running == llm.engine.stats().num_waiting == 0
    assert llm.generate("58+64=", GREEDY, use_tqdm=False)[0].outputs[0].text == "122"


def test_requests_that_were_added_to_the_engine_come_from_its_step(llm: LLM) -> None:
    """Also with an id that a call has, and though the calls' thread steps them."""
    llm.engine.add_request("llm-0", "58+64=", GREEDY)
    llm.engine.add_request("mine", "sort 31425=", GREEDY, stream=False)
    assert llm.generate(["12+7="] * 3, GREEDY, use_tqdm=False)[2].outputs[0].text == "19"
    finished, assembler = dict[str, str](), OutputAssembler()
    while llm.engine.has_unfinished_requests():
        finished |= {o.request_id: o.outputs[0].text for o in assembler.add(llm.engine.step())}
    assert finished == {"llm-0": "122", "mine": "12345"}


def test_steps_of_a_user_and_of_calls_do_not_disturb_each_other(llm: LLM, expected: list[list[Any]]) -> None:
    got, threads = in_threads(llm, range(12), 3)
    texts, assembler = [], OutputAssembler()
    for i in range(30):
        llm.engine.add_request(str(i), "58+64=", GREEDY, stream=i % 2 == 0)
        while llm.engine.has_unfinished_requests():
            texts += [output.outputs[0].text for output in assembler.add(llm.engine.step())]
    for thread in threads:
        thread.join()
    assert texts == ["122"] * 30
    assert [got[number] for number in range(12)] == expected[:12]


def test_a_refused_prompt_refuses_its_call_and_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(RequestError, match="max_model_len"):
        llm.generate(["12+7=", "a" * 4000, "12+7="], GREEDY)
    assert llm.generate([], GREEDY) == []


def joined(deltas: Sequence[OutputDelta]) -> dict[int, tuple[str, list[int], Any]]:
    parts: dict[int, list[OutputDelta]] = {}
    for delta in deltas:
        parts.setdefault(delta.index, []).append(delta)
    return {
        index: (
            "".join(delta.text for delta in each),
            [token for delta in each for token in delta.token_ids],
            [delta.finish_reason for delta in each if delta.finish_reason is not None],
        )
        for index, each in parts.items()
    }


@pytest.mark.parametrize("number", range(12))
def test_the_deltas_of_a_stream_add_up_to_the_whole_answer(llm: LLM, number: int) -> None:
    prompts, params = call_of(number)
    (whole,) = llm.generate(prompts[0], params[0], use_tqdm=False)
    deltas = list(llm.stream(prompts[0], params[0]))
    assert joined(deltas) == {c.index: (c.text, c.token_ids, [c.finish_reason]) for c in whole.outputs}
    if params[0].logprobs is not None:
        assert [row for delta in deltas for row in delta.logprobs or ()] == whole.outputs[0].logprobs


def test_closing_a_stream_ends_its_request(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[3], LONG)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.engine.stats().num_running == 0


def test_a_sooner_priority_reaches_the_scheduler(llm: LLM) -> None:
    seen: list[list[int]] = []
    engine: Any = llm.engine
    schedule = engine._scheduler.schedule

    def noting(view: Any) -> Any:
        rows = [*view.running.tolist(), *view.waiting.tolist()]
        seen.append(sorted(view.priority[rows].tolist()))
        return schedule(view)

    engine._scheduler.schedule = noting
    try:
        llm.generate(["12+7=", "12+7="], GREEDY, use_tqdm=False, priority=[7, -2])
        assert [-2, 7] in seen
        llm.generate(["12+7=", "12+7="], GREEDY, use_tqdm=False, priority=3)
        assert [3, 3] in seen
        list(llm.stream("12+7=", GREEDY, priority=9))
        assert [9] in seen
    finally:
        del engine._scheduler.schedule
    with pytest.raises(RequestError, match="2 prompts but 1 priorities"):
        llm.generate(["12+7=", "12+7="], GREEDY, priority=[1])


class RaisesOnce:
    """In place of a method: the call of that number raises."""

    def __init__(self, method: Any, number: int, error: BaseException) -> None:
        self._method, self._left, self._error = method, number, error

    def __call__(self, *args: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return self._method(*args)


@pytest.mark.parametrize("error", [ValueError("mine"), MemoryError(), KeyboardInterrupt(), PluginError("rule")])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_failed_step_raises_in_the_calls_that_it_concerned(llm: LLM, number: int, error: BaseException) -> None:
    engine: Any = llm.engine
    launch = engine._runner.launch
    engine._runner.launch = RaisesOnce(launch, number, error)
    try:
        with pytest.raises(TinyvllmError) as raised:
            llm.generate(["Once upon a time"] * 3, GREEDY, use_tqdm=False)
        assert type(error).__name__ in str(raised.value) or isinstance(error, (MemoryError, PluginError))
    finally:
        engine._runner.launch = launch
    assert llm.generate("58+64=", GREEDY, use_tqdm=False)[0].outputs[0].text == "122"
