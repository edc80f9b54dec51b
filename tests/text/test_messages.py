"""Messages are refused by the place of what is wrong, and get the form that a template knows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvllm.errors import RequestError
from tinyvllm.text.messages import messages_for
from tinyvllm.text.template_syntax import analysed

CHATML = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}" + PARTS + "{% endif %}{% endfor %}"
)
TEXT_PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def content_for(template: str, content: Any) -> Any:
    return messages_for(analysed(template), [{"role": "user", "content": content}])[0]["content"]


def test_text_parts_are_joined_for_a_template_that_takes_text_only() -> None:
    assert content_for(CHATML, TEXT_PARTS) == "a\nb"
    assert content_for(CHATML, ["a", {"text": "b"}]) == "a\nb"
    assert content_for(CHATML, []) == ""


def test_text_parts_are_handed_on_to_a_template_that_takes_parts() -> None:
    assert content_for(PARTS, TEXT_PARTS) == TEXT_PARTS
    assert content_for(BOTH, TEXT_PARTS) == TEXT_PARTS


def test_text_becomes_a_part_only_for_a_template_that_takes_nothing_else() -> None:
    assert content_for(PARTS, "hi") == [{"type": "text", "text": "hi"}]
    assert content_for(BOTH, "hi") == "hi"
    assert content_for(CHATML, "hi") == "hi"


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("template", "content"),
    [
        (CHATML, ""),
        (PARTS, []),
        ("{% if messages[0].content is none %}{% endif %}", None),
        (CHATML + "{{ x is none }}", ""),
    ],
)
def test_null_beside_tool_calls_is_never_printed(template: str, content: Any) -> None:
    for message in (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
    ):
        assert messages_for(analysed(template), [message])[0]["content"] == content


def test_arguments_of_tool_calls_become_mappings() -> None:
    for arguments, expected in (('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("", {}), (None, {})):
        for call in ({"function": {"name": "add", "arguments": arguments}}, {"name": "add", "arguments": arguments}):
            message = {"role": "assistant", "content": "x", "tool_calls": [call]}
            (sent,) = messages_for(analysed(CHATML), [message])[0]["tool_calls"]
            assert sent.get("function", sent) == {"name": "add", "arguments": expected}


def test_an_answer_of_an_openai_server_can_be_sent_back_as_it_came() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "12",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [],
        "reasoning_content": None,
    }
    assert messages_for(analysed(CHATML), [answer]) == [{"role": "assistant", "content": "12"}]


def test_reasoning_reaches_a_template_under_the_name_that_it_reads() -> None:
    for name in ("reasoning", "reasoning_content", "thinking"):
        (message,) = messages_for(analysed(CHATML), [{"role": "assistant", "content": "12", name: "hm"}])
        assert message["reasoning_content"] == message["thinking"] == "hm"


def test_a_key_that_only_this_template_reads_is_taken() -> None:
    message = {"role": "user", "content": "hi", "citations": [1]}
    for reads in ("m.citations", "m['citations']", "m.get('citations')", "'citations' in m"):
        template = "{% for m in messages %}{{ " + reads + " }}{% endfor %}"
        assert messages_for(analysed(template), [message]) == [message]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("hello", r"messages\[1\] must be a mapping with role and content, got 'hello'"),
        ({"content": "x"}, r"messages\[1\]\.role must be text such as \"user\", got None"),
        ({"role": 3, "content": "x"}, r"messages\[1\]\.role must be text"),
        ({"role": "user", "contnt": "x"}, r"messages\[1\] has the unknown key 'contnt'; did you mean 'content'"),
        ({"role": "user", "content": "x", 5: 6}, r"messages\[1\] has the key 5, which is no text"),
        ({"role": "user"}, r"messages\[1\]\.content must be text or a list of parts, got None"),
        ({"role": "user", "content": None}, r"messages\[1\]\.content .*null is for messages with tool_calls only"),
        ({"role": "assistant", "content": None, "tool_calls": []}, r"messages\[1\]\.content must be text"),
        ({"role": "user", "content": 5}, r"messages\[1\]\.content must be text or a list of parts, got 5"),
        ({"role": "user", "content": {"text": "x"}}, r"messages\[1\]\.content must be text or a list of parts"),
        ({"role": "user", "content": [5]}, r"messages\[1\]\.content\[0\] must be a part such as"),
        (
            {"role": "user", "content": [*TEXT_PARTS, {"type": "image_url", "image_url": {"url": "x"}}]},
            r"messages\[1\]\.content\[2\]\.type must be \"text\", got 'image_url'; this model takes no images",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, r"messages\[1\]\.content\[0\]\.text must be text, got None"),
        ({"role": "user", "content": [{"type": "text", "txt": "x"}]}, r"content\[0\] has the unknown key 'txt'"),
        ({"role": "user", "content": "x", "name": 5}, r"messages\[1\]\.name must be text, got 5"),
        ({"role": "user", "content": "x", "audio": {"id": 1}}, r"messages\[1\]\.audio must be null or empty"),
        ({"role": "assistant", "tool_calls": "f()"}, r"messages\[1\]\.tool_calls must be a list of tool calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, r"messages\[1\]\.tool_calls\[0\] must be a mapping"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, r"tool_calls\[0\]\.function\.name must be text"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{a}"}}]},
            r"messages\[1\]\.tool_calls\[0\]\.function\.arguments must be a mapping, or JSON text of one, got '{a}'",
        ),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": 5}]}, r"tool_calls\[0\]\.arguments must be"),
    ],
)
def test_what_is_not_in_the_format_is_refused_by_its_place(message: Any, error: str) -> None:
    with pytest.raises(RequestError, match=error):
        messages_for(analysed(CHATML), [{"role": "user", "content": "x"}, message])


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ({"role": "user", "content": "x"}, r"must be a list of messages, got one message; put it into a list: \[\{"),
        ("hello", "messages must be a list of messages such as"),
        (None, "messages must be a list of messages such as"),
        (iter([{"role": "user", "content": "x"}]), "messages must be a list of messages such as"),
        ([], "messages must be a list of messages, at least one"),
    ],
)
def test_what_is_no_list_of_messages_is_refused_with_an_example(messages: Any, error: str) -> None:
    with pytest.raises(RequestError, match=error):
        messages_for(analysed(CHATML), messages)


@pytest.mark.parametrize(
    ("source", "takes_parts", "takes_text"),
    [
        (CHATML, False, True),
        (PARTS, True, False),
        (BOTH, True, True),
        # Qwen3: whatever is no string is left out, so it must never see parts.
        ("{% if m.content is string %}{% set content = m.content %}{% else %}{% set content = '' %}{% endif %}",
         False, True),
        ("{% for line in message.content.split('x') %}{{ line }}{% endfor %}", False, True),
        ("{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% endfor %}", True, False),
        ("{{ message.content | map(attribute='text') | join }}", True, False),
        ("{{ message['content'][0]['text'] }}", True, False),
        ("{% set content = message.content %}{% for part in content %}{% endfor %}", True, False),
        ("{% macro show(x) %}{% if x is string %}{{ x }}{% else %}{% for p in x %}{% endfor %}{% endif %}{% endmacro %}"
         "{{ show(message.content) }}", True, True),
        ("{% for part in message.get('content') or [] %}{% endfor %}", True, False),
        ("{% for call in message.tool_calls %}{% for x in call %}{% endfor %}{% endfor %}", False, True),
        ("{{ message.content[:5] }}{{ message.content[0] }}", False, True),
    ],
)  # fmt: skip
def test_the_syntax_tree_tells_whether_a_template_takes_parts(source: str, takes_parts: bool, takes_text: bool) -> None:
    syntax = analysed(source)
    assert (syntax.takes_parts, syntax.takes_text) == (takes_parts, takes_text)


def test_content_is_followed_through_a_few_renamings() -> None:
    chain = "".join(f"{{% set {new} = {old} %}}" for old, new in itertools.pairwise("abcdef"))
    source = "{% set a = message.content %}" + chain + "{% for part in f %}{% endfor %}"
    assert analysed(source).takes_parts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["text", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["name", "type", "text", "function", "arguments", "audio"])
ANYTHING = JSON | st.lists(st.dictionaries(KEYS, JSON, max_size=3), max_size=2)
MESSAGE = st.fixed_dictionaries(
    {"role": st.just("user") | JSON, "content": st.text(max_size=3) | ANYTHING},
    optional={"name": JSON, "tool_calls": ANYTHING, "reasoning": JSON, "audio": JSON},
)


def outcome(template: str, messages: Any) -> list[dict[str, Any]] | str:
    try:
        return messages_for(analysed(template), messages)
    except RequestError as error:
        return str(error)


@given(st.lists(MESSAGE, max_size=2))
def test_any_json_is_either_refused_by_its_place_or_takes_the_form_of_the_template(messages: Any) -> None:
    for template, kind in ((CHATML, str), (PARTS, list)):
        result = outcome(template, messages)
        if isinstance(result, str):
            assert result.startswith("messages")
        else:
            assert all(isinstance(message["content"], kind) for message in result)
            assert all(isinstance(message["role"], str) for message in result)
