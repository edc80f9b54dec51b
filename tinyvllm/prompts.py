"""The containers that the public calls take: one or several prompts, parameters and conversations, as lists.

Knows how many there are and in which order; what is in a prompt or a message is looked at where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from tinyvllm._checks import refuse, shown
from tinyvllm.errors import RequestError
from tinyvllm.request import SamplingParams, check_params

Prompt: TypeAlias = str | Mapping[str, Any] | Sequence[int]
Messages: TypeAlias = Iterable[Mapping[str, Any]]

_PROMPTS = "a prompt (text, a mapping or a list of token ids) or a list of prompts"
_CONVERSATIONS = 'a list of messages like {"role": "user", "content": "..."}, or a list of such lists'
_NOT_LISTS = (str, bytes, bytearray, memoryview, Mapping)


def list_of_prompts(prompts: Prompt | Iterable[Any]) -> list[Prompt]:
    """The prompts in order; a single one is a list of one. Tuples, arrays and generators count as lists.

    Raises:
        RequestError: it is neither, or has no order.
    """
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    items = _items("prompts", prompts, _PROMPTS)
    if items and all(isinstance(item, Integral) for item in items):
        return [items]  # the token ids of one prompt
    return items


def list_of_params(
    sampling_params: SamplingParams | Iterable[SamplingParams | None] | None, num_prompts: int
) -> list[SamplingParams | None]:
    """The parameters of each prompt; a single value is for all of them, None for the checkpoint's defaults.

    Raises:
        RequestError: there are more or fewer than prompts, or one is no SamplingParams.
    """
    if sampling_params is None or isinstance(sampling_params, SamplingParams):
        return [sampling_params] * num_prompts
    if isinstance(sampling_params, _NOT_LISTS) or not isinstance(sampling_params, Iterable):
        check_params("sampling_params", sampling_params)
    items = _items("sampling_params", sampling_params, "a SamplingParams or a list of them")
    if len(items) != num_prompts:
        raise RequestError(f"{num_prompts} prompts but {len(items)} sampling_params; give one for each, or one")
    return [None if item is None else check_params(f"sampling_params[{i}]", item) for i, item in enumerate(items)]


def list_of_priorities(priority: int | Iterable[int], num_prompts: int) -> list[int]:
    """The priority of each prompt; a single one is for all of them. The values are checked where requests are taken.

    Raises:
        RequestError: there are more or fewer than prompts, or it is no list.
    """
    if isinstance(priority, Integral):
        return [int(priority)] * num_prompts
    items = _items("priority", priority, "a whole number or a list of them")
    if len(items) != num_prompts:
        raise RequestError(f"{num_prompts} prompts but {len(items)} priorities; give one for each, or one")
    return items


def list_of_conversations(messages: Messages | Iterable[Messages]) -> list[list[Mapping[str, Any]]]:
    """The conversations in order; a list of messages is a list of one conversation.

    Raises:
        RequestError: it is neither, is empty, or mixes the two.
    """
    items = _items("messages", messages, _CONVERSATIONS)
    if not items:
        refuse("messages", items, _CONVERSATIONS)
    if all(isinstance(item, Mapping) for item in items):
        return [items]
    conversations = []
    for i, item in enumerate(items):
        conversation = _items(f"messages[{i}]", item, "a list of messages, as the others are")
        for j, message in enumerate(conversation):
            if not isinstance(message, Mapping):
                refuse(f"messages[{i}][{j}]", message, 'a message like {"role": "user", "content": "..."}')
        conversations.append(conversation)
    return conversations


def _items(where: str, value: Any, expected: str) -> list[Any]:
    if isinstance(value, _NOT_LISTS) or not isinstance(value, Iterable):
        remedy = "put it in a list: [...]" if isinstance(value, Mapping) else ""
        refuse(where, value, expected, remedy)
    if isinstance(value, (set, frozenset)):
        raise RequestError(f"{where} must be {expected}, got the set {shown(value)}, which has no order; give a list")
    return list(value)
