"""Checks the messages of a conversation, and gives them the form that a template knows.

A template takes whatever it is given: a misspelt key is left out and a missing text is printed as ``None``. So what is
not in the format is refused here, by its place: ``messages[1].content[0].type``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tinyvllm._checks import refuse, shown
from tinyvllm._nearest import did_you_mean
from tinyvllm.errors import RequestError
from tinyvllm.text.template_syntax import TemplateSyntax

Message = Mapping[str, Any]
Messages = Sequence[Message]

EXAMPLE = '[{"role": "user", "content": "..."}]'
_ROLE_AND_TEXT = ("role", "content", "name", "tool_calls", "tool_call_id")
# Names that servers give to what a model thought before it answered.
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Keys of an OpenAI answer that is sent back. They say nothing to a template while they are null or empty.
_EMPTY_ONLY = ("refusal", "annotations", "audio", "function_call")
_KEYS = (*_ROLE_AND_TEXT, *_REASONING)


def check_messages(messages: object, where: str = "messages") -> Messages:
    """``messages`` itself, if it is a list of at least one mapping.

    Raises:
        RequestError: it is something else; says what to give.
    """
    if isinstance(messages, Mapping):
        raise RequestError(f"{where} must be a list of messages, got one message; put it into a list: {EXAMPLE}")
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        refuse(where, messages, f"a list of messages such as {EXAMPLE}")
    if not messages:
        refuse(where, messages, f"a list of messages, at least one: {EXAMPLE}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(f"{where}[{i}] must be a mapping with role and content, got {shown(message)}")
    return messages


def messages_for(template: TemplateSyntax, messages: Messages, where: str = "messages") -> list[dict[str, Any]]:
    """New messages in the form that a template knows.

    Text parts are joined by newlines for a template that takes text only, as vLLM does; text becomes one part for a
    template that takes parts only. ``null`` equals an absent key. Arguments of tool calls that are JSON text become
    mappings.

    Args:
        template: decides about content, and may read keys that are not in OpenAI's format.
        messages: as the user gave them.
        where: what the user calls them, for messages of errors.
    Raises:
        RequestError: something is not in the format, by its place.
    """
    checked = check_messages(messages, where)
    return [_message(template, message, f"{where}[{i}]") for i, message in enumerate(checked)]


def _message(template: TemplateSyntax, message: Message, where: str) -> dict[str, Any]:
    _check_keys(template, message, where)
    result = {key: value for key, value in message.items() if value is not None and key not in _EMPTY_ONLY}
    result |= {key: message[key] for key in _EMPTY_ONLY if message.get(key)}
    for key in ("name", "tool_call_id", *_REASONING):
        if key in result and not isinstance(result[key], str):
            refuse(f"{where}.{key}", result[key], "text")
    if "tool_calls" in result:
        result["tool_calls"] = _tool_calls(result["tool_calls"], f"{where}.tool_calls")
        if not result["tool_calls"]:
            del result["tool_calls"]
    reasoning = next((result[key] for key in _REASONING if key in result), None)
    if reasoning is not None:
        # Templates read one of these two.
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    content = result.get("content")
    if content is None and "tool_calls" not in result and not _has_content_of_its_own(template, result):
        refuse(f"{where}.content", None, "text or a list of parts", "null is for messages with tool_calls only")
    result["content"] = _content(template, content, f"{where}.content")
    return result


def _check_keys(template: TemplateSyntax, message: Message, where: str) -> None:
    if not isinstance(message.get("role"), str):
        refuse(f"{where}.role", message.get("role"), 'text such as "user"')
    for key, value in message.items():
        if not isinstance(key, str):
            raise RequestError(f"{where} has the key {shown(key)}, which is no text; the keys are {', '.join(_KEYS)}")
        if key in _KEYS or key in template.keys:
            continue
        if key not in _EMPTY_ONLY:
            hint = did_you_mean(key, _KEYS)
            raise RequestError(f"{where} has the unknown key {shown(key)}{hint}; the keys are {', '.join(_KEYS)}")
        if value:
            refuse(f"{where}.{key}", value, "null or empty", "the chat template has no place for it")


def _has_content_of_its_own(template: TemplateSyntax, message: Message) -> bool:
    """Whether a message without content has another key that only this template reads (``parts``, ``documents``)."""
    return any(key in template.keys and key not in _ROLE_AND_TEXT for key in message)


def _content(template: TemplateSyntax, content: object, where: str) -> Any:
    if content is None:
        # A template that never asks for null would print it, so it gets no text instead.
        return None if template.takes_null else "" if template.takes_text else []
    if isinstance(content, str):
        return content if template.takes_text else [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        refuse(where, content, "text or a list of parts")
    parts = [_text_part(part, f"{where}[{i}]") for i, part in enumerate(content)]
    return parts if template.takes_parts else "\n".join(part["text"] for part in parts)


def _text_part(part: object, where: str) -> dict[str, str]:
    """A part of content as ``{"type": "text", "text": ...}``; a string stands for such a part."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        refuse(where, part, 'a part such as {"type": "text", "text": "..."}')
    kind = part.get("type", "text")
    if kind != "text":
        refuse(f"{where}.type", kind, '"text"', "this model takes no images, sound, video or files")
    for key in part:
        if key not in ("type", "text"):
            hint = did_you_mean(key, ("type", "text"))
            raise RequestError(f"{where} has the unknown key {shown(key)}{hint}; a text part has type and text")
    if not isinstance(part.get("text"), str):
        refuse(f"{where}.text", part.get("text"), "text")
    return {"type": "text", "text": part["text"]}


def _tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, (list, tuple)):
        refuse(where, calls, "a list of tool calls")
    return [_tool_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _tool_call(call: object, where: str) -> dict[str, Any]:
    """A tool call with ``arguments`` as a mapping; they stand in ``function``, or in the call itself."""
    if not isinstance(call, Mapping):
        refuse(where, call, 'a mapping such as {"type": "function", "function": {"name": ..., "arguments": ...}}')
    if "function" not in call:
        return _function(call, where)
    return {**call, "function": _function(call["function"], f"{where}.function")}


def _function(function: object, where: str) -> dict[str, Any]:
    if not isinstance(function, Mapping):
        refuse(where, function, "a mapping with name and arguments")
    if not isinstance(function.get("name"), str):
        refuse(f"{where}.name", function.get("name"), "text")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"{where}.arguments must be a mapping, or JSON text of one, got {shown(arguments)}: {error}"
            ) from error
    elif arguments is None or isinstance(arguments, str):
        arguments = {}
    if not isinstance(arguments, (Mapping, list)):
        refuse(f"{where}.arguments", arguments, "a mapping, or JSON text of one")
    return {**function, "arguments": arguments}
