"""Sampling parameters and requests: what is taken, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest

from tinyvllm import SamplingParams
from tinyvllm._checks import shown
from tinyvllm.errors import RequestError
from tinyvllm.outputs import CompletionOutput, RequestMetrics
from tinyvllm.request import Request

DEFAULTS: dict[str, Any] = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "detokenize": True,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "structured_outputs": None,
    "extra_args": None,
}

GOOD: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.001},
    {"n": 64, "temperature": 0},
    {"top_p": 1e-9, "min_p": 1},
    {"max_tokens": None, "min_tokens": 5},
    {"logprobs": 0, "prompt_logprobs": -1},
    {"seed": 2**64 - 1},
    {"stop": ["a"] * 16, "stop_token_ids": np.array([3, 4])},
    {"logit_bias": {7: -100}, "extra_args": {"mine": [1]}},
    {"top_k": np.int64(3), "top_p": np.float32(0.5), "ignore_eos": np.True_, "temperature": np.array(0.5)},
    {"max_tokens": 2**31 - 1, "min_tokens": np.int32(4), "stop_token_ids": {5}, "stop": ("a", "b")},
]

BAD: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "sampling.n must be an integer from 1 to 64, got 0"),
    ({"n": 65}, "got 65; send several requests for more"),
    ({"n": True}, "sampling.n must be an integer"),
    ({"n": 1.0}, "sampling.n must be an integer"),
    ({"presence_penalty": -2.1}, "sampling.presence_penalty must be a number from -2 to 2, got -2.1"),
    ({"frequency_penalty": "1"}, "sampling.frequency_penalty must be a number from -2 to 2, got '1'"),
    ({"repetition_penalty": 0}, "sampling.repetition_penalty must be a number from 0.0001 to 10000, got 0"),
    ({"repetition_penalty": 1e-40}, "1 changes nothing"),
    ({"max_tokens": 2**31}, "sampling.max_tokens must be an integer from 1 to 2147483647, got 2147483648"),
    ({"min_tokens": 2**31}, "sampling.min_tokens"),
    ({"top_k": 2**31}, "sampling.top_k"),
    ({"logprobs": 2**31}, "sampling.logprobs"),
    ({"top_k": 10**5000}, "got (a number of about 5,001 digits)"),
    ({"seed": -(10**5000)}, "got -(a number of about 5,001 digits)"),
    ({"temperature": 10**5000}, "got (a number of about 5,001 digits)"),
    ({"logit_bias": {2**31: 1}}, "sampling.logit_bias key"),
    ({"logit_bias": {"4294967296": 1}}, "sampling.logit_bias key"),
    ({"logit_bias": {"5": 1, 5: 2}}, "sampling.logit_bias names token 5 twice"),
    ({"stop_token_ids": [2**31]}, "sampling.stop_token_ids[0]"),
    ({"stop_token_ids": itertools.count()}, "at most 1024 entries, got more than 1024"),
    ({"allowed_token_ids": range(10**15)}, "at most 1048576 entries, got 1000000000000000"),
    ({"allowed_token_ids": np.array(3)}, "sampling.allowed_token_ids must be a list of token ids"),
    ({"stop": b"ab"}, "sampling.stop must be a string or a list of strings"),
    ({"stop": "a\ud800"}, "sampling.stop[0] must be text that UTF-8 can hold, got 'a\\ud800'"),
    ({"bad_words": ["\udfff"]}, "sampling.bad_words[0]"),
    ({"stop": "\x1b[31m" * 500}, "got '\\x1b[31m"),
    ({"temperature": -0.1}, "sampling.temperature must be a number from 0 to 100, got -0.1; 0 is greedy"),
    ({"temperature": math.nan}, "sampling.temperature must be a number from 0 to 100, got nan"),
    ({"temperature": math.inf}, "got inf"),
    ({"temperature": None}, "got None"),
    ({"temperature": 10**400}, "sampling.temperature"),
    ({"top_p": 0}, "sampling.top_p must be a number above 0 and at most 1, got 0"),
    ({"top_p": 1.01}, "sampling.top_p"),
    ({"top_k": -2}, "sampling.top_k must be an integer from -1"),
    ({"top_k": 2.5}, "sampling.top_k"),
    ({"min_p": 1.5}, "sampling.min_p"),
    ({"seed": 2**64}, "sampling.seed"),
    ({"seed": -2}, "sampling.seed"),
    ({"stop": ""}, "sampling.stop[0] must be a string of 1 to 1024 characters"),
    ({"stop": ["a", 3]}, "sampling.stop[1]"),
    ({"stop": {"a": 1}}, "sampling.stop must be a string or a list of strings"),
    ({"stop": [str(i) for i in range(17)]}, "sampling.stop must have at most 16 entries, got 17"),
    ({"stop": "a", "detokenize": False}, "use stop_token_ids instead"),
    ({"stop_token_ids": [1, -1]}, "sampling.stop_token_ids[1]"),
    ({"stop_token_ids": "12"}, "sampling.stop_token_ids must be a list of token ids"),
    ({"stop_token_ids": 3}, "sampling.stop_token_ids must be a list of token ids"),
    ({"ignore_eos": 1}, "sampling.ignore_eos must be true or false, got 1"),
    ({"max_tokens": 0}, "sampling.max_tokens must be an integer from 1"),
    ({"min_tokens": 17}, "sampling.min_tokens must be at most max_tokens, which is 16, got 17"),
    ({"min_tokens": -1}, "sampling.min_tokens"),
    ({"logprobs": -2}, "sampling.logprobs must be an integer from -1"),
    ({"logprobs": True}, "sampling.logprobs"),
    ({"prompt_logprobs": 1.5}, "sampling.prompt_logprobs"),
    ({"logit_bias": {"x": 1}}, "sampling.logit_bias key must be an integer from 0"),
    ({"logit_bias": {3: math.nan}}, "sampling.logit_bias[3] must be a number"),
    ({"logit_bias": dict.fromkeys(range(1025), 0)}, "sampling.logit_bias must be a mapping of at most 1024"),
    ({"logit_bias": [1]}, "sampling.logit_bias must be a mapping"),
    ({"allowed_token_ids": []}, "sampling.allowed_token_ids must be a list of at least one token id"),
    ({"bad_words": ["ok", ""]}, "sampling.bad_words[1]"),
    ({"structured_outputs": {"json": {}}}, "sampling.structured_outputs is not available in this version"),
    ({"extra_args": {1: 2}}, "sampling.extra_args must be a mapping with strings as keys"),
]


def test_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(SamplingParams()) == DEFAULTS
    assert [f.name for f in dataclasses.fields(SamplingParams)] == list(DEFAULTS)


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_good_values_are_taken_and_survive_json(fields: dict[str, Any]) -> None:
    params = SamplingParams.from_mapping(fields)
    assert SamplingParams.from_mapping(json.loads(json.dumps(dataclasses.asdict(params)))) == params
    assert hash(params) == hash(dataclasses.replace(params))


@pytest.mark.parametrize(("fields", "message"), BAD, ids=lambda v: shown(v)[:40])
def test_bad_values_are_refused_by_field_value_and_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize("field", DEFAULTS)
def test_no_field_takes_just_anything(field: str) -> None:
    with pytest.raises(RequestError, match=rf"sampling\.{field}"):
        SamplingParams(**{field: object()})  # type: ignore[arg-type]


def test_spellings_are_normalised() -> None:
    from_json: Any = {"12": 3}
    params = SamplingParams(
        stop="end", top_k=-1, seed=-1, stop_token_ids=[5, 3, 5], bad_words=["a", "a"], logit_bias=from_json
    )
    assert params.stop == ("end",)
    assert params.top_k == 0
    assert params.seed is None
    assert params.stop_token_ids == (5, 3)
    assert params.bad_words == ("a",)
    assert params.logit_bias == {12: 3.0}


def test_a_small_temperature_is_kept_as_it_is() -> None:
    assert SamplingParams(temperature=1e-4).temperature == 1e-4


def test_an_unknown_field_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(RequestError, match=r"'temprature' is not a field .*did you mean temperature\? .*top_p, top_k"):
        SamplingParams.from_mapping({"temprature": 1})
    with pytest.raises(RequestError, match="must be a mapping"):
        SamplingParams.from_mapping([("n", 1)])  # type: ignore[arg-type]


def test_messages_stay_short_whatever_is_sent() -> None:
    sent: list[dict[Any, Any]] = [
        {"stop": ["x" * 10**6]},
        {"extra_args": "y" * 10**6},
        {"z" * 10**6: 1},
        {"logit_bias": "9" * 10**6},
        {"logit_bias": dict.fromkeys(range(10**6))},
        {"extra_args": [["z" * 10**6] * 1000] * 1000},
    ]
    for fields in sent:
        with pytest.raises(RequestError) as caught:
            SamplingParams.from_mapping(fields)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("fields", "has_rules"),
    [
        ({}, False),
        ({"temperature": 0.3, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "stop": "a", "logprobs": 3}, False),
        ({"logit_bias": {}, "bad_words": []}, False),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"logit_bias": {1: 0.5}}, True),
        ({"allowed_token_ids": [1]}, True),
        ({"bad_words": ["a"]}, True),
        ({"min_tokens": 1}, True),
    ],
    ids=str,
)
def test_rules_are_what_may_change_a_single_logit(fields: dict[str, Any], has_rules: bool) -> None:
    assert SamplingParams(**fields).has_rules is has_rules


@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_token_ids_must_be_in_the_vocabulary(field: str) -> None:
    fields: dict[str, Any] = {field: {99: 1.0} if field == "logit_bias" else [99]}
    params = SamplingParams(**fields)
    params.check_vocabulary(100)
    with pytest.raises(RequestError, match=f"sampling.{field} names token 99, but the last one is 98"):
        params.check_vocabulary(99)


def test_parameters_cannot_be_changed_or_shared_by_accident() -> None:
    bias = {1: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[2] = 2.0
    assert params.logit_bias == {1: 1.0}
    with pytest.raises(RequestError, match=r"cannot be changed; params.clone\(n=2\) is a changed copy"):
        params.n = 2  # type: ignore[misc]


def test_a_clone_is_a_changed_copy_that_shares_nothing() -> None:
    params = SamplingParams(temperature=0.5, logit_bias={1: 1.0}, extra_args={"mine": [1]})
    copy = params.clone()
    assert copy == params
    assert copy.logit_bias is not params.logit_bias
    assert copy.extra_args is not None
    copy.extra_args["mine"].append(2)
    assert params.extra_args == {"mine": [1]}
    assert params.clone(max_tokens=3) == dataclasses.replace(params, max_tokens=3)
    assert pickle.loads(pickle.dumps(params)) == params
    with pytest.raises(RequestError, match="did you mean max_tokens"):
        params.clone(max_token=3)


def test_an_unknown_argument_is_refused_with_the_nearest_and_the_signature_stays() -> None:
    unknown: dict[str, Any] = {"temprature": 1}
    with pytest.raises(RequestError, match=r"'temprature' is not a field .*did you mean temperature\?"):
        SamplingParams(**unknown)
    assert list(inspect.signature(SamplingParams).parameters) == list(DEFAULTS)
    with pytest.raises(TypeError, match="multiple values"):
        SamplingParams(1, **{"n": 2})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "is_nothing"),
    [
        ({"best_of": 1}, True),
        ({"best_of": None, "use_beam_search": False, "logits_processors": [], "length_penalty": 1.0}, True),
        ({"best_of": 2}, False),
        ({"best_of": True}, False),
        ({"use_beam_search": True}, False),
        ({"truncate_prompt_tokens": 4}, False),
    ],
    ids=str,
)
def test_words_of_vllm_that_ask_for_nothing_are_taken(fields: dict[str, Any], is_nothing: bool) -> None:
    for make in (SamplingParams.from_mapping, lambda mapping: SamplingParams(**mapping)):
        if is_nothing:
            assert make(fields) == SamplingParams()
        else:
            with pytest.raises(RequestError, match=f"sampling.{next(iter(fields))} is not available in this version"):
                make(fields)


def test_numbers_that_float32_cannot_hold_are_the_nearest_that_it_can() -> None:
    assert SamplingParams(temperature=1e-300).is_greedy
    assert np.float32(SamplingParams(top_p=1e-300).top_p) > 0
    assert SamplingParams(min_p=1e-300).min_p == 1e-300


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_log_probabilities_are_at_most_as_many_as_the_vocabulary_has(field: str) -> None:
    for width in (0, 100, -1):
        SamplingParams.from_mapping({field: width}).check_vocabulary(100)
    with pytest.raises(RequestError, match=f"sampling.{field} must be at most 100, the size of the .*, got 101"):
        SamplingParams.from_mapping({field: 101}).check_vocabulary(100)


def test_a_request_is_a_plain_value() -> None:
    array: Any = np.array([1, 2], np.int32)
    request = Request("a", None, array, SamplingParams())
    assert request.prompt_token_ids == (1, 2)
    assert request.deadline == math.inf
    assert json.dumps(dataclasses.asdict(request))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "has an empty prompt"), ([-1], r"prompt_token_ids\[0\]"), ("ab", "list of token ids"), ([1, 2.5], r"\[1\]")],
)
def test_a_request_needs_token_ids(prompt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request("a", None, prompt, SamplingParams())


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"priority": 2**31}, r"priority must be an integer from -2147483648 to 2147483647, got 2147483648; lower is"),
    ({"priority": -(2**31) - 1}, "priority must be"),
    ({"priority": 1.5}, "priority must be an integer"),
    ({"priority": True}, "priority must be an integer"),
    ({"priority": "high"}, "priority must be an integer"),
    ({"priority": None}, "priority must be an integer"),
    ({"deadline": math.nan}, "deadline must be a number of seconds, got nan; infinity is none"),
    ({"deadline": "soon"}, "deadline must be a number of seconds"),
    ({"deadline": True}, "deadline must be a number of seconds"),
    ({"deadline": None}, "deadline must be a number of seconds"),
    ({"deadline": 10**400}, "deadline must be a number of seconds"),
    ({"arrival_time": math.nan}, "arrival_time must be"),
    ({"request_id": 3}, "request_id must be a string"),
    ({"request_id": ""}, "request_id must be a string of 1 to 1024 characters"),
    ({"prompt": b"ab"}, "prompt must be a string"),
    ({"params": {"max_tokens": 1}}, "params must be a SamplingParams, got .*from_mapping"),
    ({"params": None}, r"params must be a SamplingParams, got None; as in SamplingParams\(max_tokens=16\)"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_REQUESTS, ids=lambda v: shown(v)[:40])
def test_whatever_is_wrong_with_a_field_of_a_request_is_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"request_id": "a", "prompt": None, "prompt_token_ids": [1], "params": SamplingParams()}
    with pytest.raises(RequestError, match=message):
        Request(**{**good, **fields})


def test_priority_and_deadline_are_kept_as_plain_numbers() -> None:
    request = Request("a", None, [1], SamplingParams(), np.int64(-3), np.float32(2.5))  # type: ignore[arg-type]
    assert (type(request.priority), request.priority) == (int, -3)
    assert (type(request.deadline), request.deadline) == (float, 2.5)
    assert Request("a", None, [1], SamplingParams(), deadline=-math.inf).deadline == -math.inf


def test_metrics_count_from_arrival() -> None:
    metrics = RequestMetrics(arrival_time=10.0, first_scheduled_time=10.5, first_token_time=12.0)
    assert metrics.time_in_queue_s == 0.5
    assert metrics.ttft_s == 2.0
    assert metrics.e2e_latency_s is None


def test_a_completion_is_finished_once_it_has_a_reason() -> None:
    assert not CompletionOutput(0, "", []).finished
    assert CompletionOutput(0, "", [], finish_reason="length").finished
