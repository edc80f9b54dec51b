"""Prompts, parameters and conversations in whatever container: taken if there is one order, else refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from tinyvllm import SamplingParams
from tinyvllm.errors import RequestError
from tinyvllm.prompts import list_of_conversations, list_of_params, list_of_prompts

HI = {"role": "user", "content": "hi"}


def kind(value: object) -> str:
    """A test's name; no address and no order of a set, which differ between the processes of one run."""
    return type(value).__name__


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a", ["a"]),
        ({"prompt": "a"}, [{"prompt": "a"}]),
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        ((letter for letter in "ab"), ["a", "b"]),
        (iter(["a"]), ["a"]),
        ({"a": 1}.keys(), ["a"]),
        (map(str, [1, 2]), ["1", "2"]),
        (np.array(["a", "b"]), ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        (np.array([1, 2], np.int32), [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([], []),
    ],
    ids=kind,
)
def test_prompts_come_in_any_container_that_has_an_order(prompts: Any, expected: list[Any]) -> None:
    assert list_of_prompts(prompts) == expected


@pytest.mark.parametrize("prompts", [None, b"ab", bytearray(b"a"), 3, 2.5, {"a", "b"}, frozenset(), object()], ids=kind)
def test_what_is_no_list_of_prompts_is_refused_with_what_to_give(prompts: Any) -> None:
    with pytest.raises(RequestError, match=r"prompts must be a prompt .* or a list of prompts, got"):
        list_of_prompts(prompts)


def test_parameters_are_one_for_all_or_one_for_each() -> None:
    one, other = SamplingParams(n=1), SamplingParams(n=2)
    assert list_of_params(None, 2) == [None, None]
    assert list_of_params(one, 2) == [one, one]
    containers: list[Iterable[SamplingParams]] = [[one, other], (one, other), iter([one, other])]
    for each in containers:
        assert list_of_params(each, 2) == [one, other]
    assert list_of_params([one, None], 2) == [one, None]
    with pytest.raises(RequestError, match="3 prompts but 2 sampling_params; give one for each, or one"):
        list_of_params([one, other], 3)


@pytest.mark.parametrize("params", [{"max_tokens": 1}, "greedy", 3, b"x", [{"max_tokens": 1}], ["x"], {1}], ids=kind)
def test_what_is_no_sampling_params_is_refused_with_what_to_give(params: Any) -> None:
    with pytest.raises(RequestError, match=r"sampling_params(\[0\])? must be a SamplingParams"):
        list_of_params(params, 1)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([HI], [[HI]]),
        ((HI, HI), [[HI, HI]]),
        (iter([HI]), [[HI]]),
        ([[HI], [HI, HI]], [[HI], [HI, HI]]),
        (((HI,),), [[HI]]),
        (([message] for message in (HI, HI)), [[HI], [HI]]),
    ],
    ids=kind,
)
def test_messages_are_one_conversation_or_several(messages: Any, expected: list[Any]) -> None:
    assert list_of_conversations(messages) == expected


@pytest.mark.parametrize(
    "messages", [HI, "hi", None, 3, [], ["hi"], [HI, [HI]], [[HI], HI], [[HI, "hi"]], {"a"}], ids=kind
)
def test_what_is_no_conversation_is_refused_with_what_to_give(messages: Any) -> None:
    with pytest.raises(RequestError, match=r"messages\S* must be .*(list of messages|a message like)"):
        list_of_conversations(messages)
