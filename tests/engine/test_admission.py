"""At the door of the engine: log-probabilities, priorities and prompts that cannot be served are refused alone."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import numpy as np
import pytest

import tinyvllm
from tinyvllm import LLM, SamplingParams
from tinyvllm.errors import RequestError


@cache
def demo() -> LLM:
    return LLM("demo", device="cpu", max_model_len=512)


def answers() -> bool:
    """Whether the engine still adds, and holds nothing."""
    demo().engine.check()
    return demo().generate("12+7=", SamplingParams(temperature=0))[0].outputs[0].text == "19"


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("width", [641, 1000, 2**31 - 1])
def test_more_log_probabilities_than_the_vocabulary_has_are_refused(field: str, width: int) -> None:
    params = SamplingParams.from_mapping({"max_tokens": 1, field: width})
    with pytest.raises(
        RequestError, match=f"sampling.{field} must be at most 640, the size of the vocabulary, got {width}"
    ):
        demo().generate("12+7=", params)
    assert answers()


def test_all_log_probabilities_of_the_vocabulary_are_given_where_asked_for() -> None:
    for width in (640, -1):
        params = SamplingParams(max_tokens=2, logprobs=width, prompt_logprobs=width)
        output = demo().generate("12+7=", params)[0]
        assert output.outputs[0].logprobs is not None
        assert [len(each) for each in output.outputs[0].logprobs] == [640, 640]
        assert output.prompt_logprobs is not None
        assert all(each is None or len(each) == 640 for each in output.prompt_logprobs)


def test_log_probabilities_that_would_fill_the_memory_are_refused_with_the_numbers() -> None:
    params = SamplingParams(n=64, max_tokens=400, logprobs=-1, ignore_eos=True)
    message = r"up to 25600 generated tokens \(640 each, n is 64\) .* take about 1,875 MiB, .* 512 MiB; lower logprobs"
    with pytest.raises(RequestError, match=message):
        demo().generate("12+7=", params)
    assert answers()


@pytest.mark.parametrize(
    "fields",
    [{"priority": 2**31}, {"priority": "high"}, {"priority": 1.5}, {"deadline": "soon"}, {"deadline": math.nan}],
    ids=str,
)
def test_a_bad_priority_or_deadline_costs_that_request_alone(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(fields))):
        demo().engine.add_request("bad", "12+7=", SamplingParams(), **fields)
    assert not demo().engine.has_unfinished_requests()
    assert answers()


@pytest.mark.parametrize(
    "prompt",
    [None, 3, b"ab", {1}, {}, {"prompt": None}, {"promt": "a"}, {"prompt_token_ids": "ab"}, [1, "a"], [[1]]],
    ids=repr,
)
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(RequestError):
        demo().engine.add_request("bad", prompt)
    with pytest.raises(RequestError):
        demo().generate(["12+7=", prompt], SamplingParams(max_tokens=1))
    assert not demo().engine.has_unfinished_requests()


def test_keys_of_a_prompt_that_ask_for_nothing_are_taken() -> None:
    prompt = {"prompt": "12+7=", "multi_modal_data": None, "cache_salt": None}
    assert demo().generate(prompt, SamplingParams(temperature=0))[0].outputs[0].text == "19"
    with pytest.raises(RequestError, match="keys prompt or prompt_token_ids"):
        demo().generate({**prompt, "cache_salt": "x"})


def test_prompts_come_from_a_generator_a_tuple_or_an_array() -> None:
    llm, params = demo(), SamplingParams(temperature=0)
    ids = llm.get_tokenizer().encode("12+7=")
    arrays: list[Any] = [(p for p in ["12+7=", "12+7="]), ("12+7=",) * 2, [ids, tuple(ids)], [np.array(ids)] * 2]
    for prompts in arrays:
        assert [output.outputs[0].text for output in llm.generate(prompts, params)] == ["19", "19"]
    assert llm.generate(ids, params)[0].outputs[0].text == "19"
    assert llm.generate([], params) == []


def test_messages_that_are_no_list_are_refused_before_anything_runs() -> None:
    message: Any = {"role": "user", "content": "12+7="}
    wrong: list[Any] = [message, "hi", [], None]
    for messages in wrong:
        with pytest.raises(RequestError, match="messages must be a list of messages"):
            demo().chat(messages)
    params: Any = {"max_tokens": 1}
    with pytest.raises(RequestError, match=r"sampling_params must be a SamplingParams.*from_mapping"):
        demo().chat([message], params)


def test_extreme_parameters_run_through_the_engine() -> None:
    largest = 2**31 - 1
    extremes: list[dict[str, Any]] = [
        {"max_tokens": largest, "top_k": largest},
        {"max_tokens": None, "min_tokens": largest},
        {"temperature": 1e-300},
        {"temperature": 100.0, "top_p": 1e-300, "min_p": 1e-300},
        {"repetition_penalty": 1e-4, "presence_penalty": -2, "frequency_penalty": 2},
        {"repetition_penalty": 1e4, "logit_bias": {"639": 1e6, 0: -1e6}, "seed": 2**64 - 1},
        {"seed": 0, "allowed_token_ids": list(range(640)), "bad_words": ["x" * 1024]},
    ]
    for fields in extremes:
        output = demo().generate("12+7=", SamplingParams.from_mapping({"stop": "\n", **fields}))[0].outputs[0]
        assert output.finish_reason in ("stop", "length"), fields
    assert answers()


def test_a_model_says_what_it_is() -> None:
    assert "LLM" in dir(tinyvllm)
    assert re.fullmatch(r"LLM\('demo', device='cpu', max_model_len=512, \d+ layers, vocab_size=640\)", repr(demo()))
