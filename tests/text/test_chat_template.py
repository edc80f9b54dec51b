from __future__ import annotations

import json
import threading
from datetime import datetime
from typing import Any

import pytest

from tinyvllm.errors import LoadError, RequestError
from tinyvllm.text.chat_template import ChatTemplate

MESSAGES = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hé <b>?"}]

LLAMA_3 = """
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- bos_token }}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def render(source: str, messages: Any = MESSAGES, **variables: Any) -> str:
    return ChatTemplate(source, "model/chat_template.jinja", {"bos_token": "<s>"}).render(messages, **variables)


def test_a_template_in_the_style_of_llama_3_renders_as_hugging_face_does() -> None:
    assert render(LLAMA_3, add_generation_prompt=True) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHé <b>?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),  # trim_blocks and lstrip_blocks
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "Hé <b>?"}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}", '{\n "b": 1,\n "a": [\n  2\n ]\n}'),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for m in messages %}{% generation %}{{ m.role }};{% endgeneration %}{% endfor %}", "system;user;"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{{ tools is none }} {{ unknown is defined }}|{{ unknown }}", "True False|"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ messages[0].content.strip().upper()[:2] }}", "BE"),
    ],
)
def test_what_hugging_face_templates_rely_on_works(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ (messages|map(attribute='__class__')|list)[0].__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include '/etc/hosts' %}",
        "{% import 'os' as os %}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.json }}",
    ],
)
def test_the_sandbox_lets_nothing_out(source: str) -> None:
    with pytest.raises(RequestError, match=r"model/chat_template\.jinja:1: the chat template does not take"):
        render(source)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for i in range(10**12) %}{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**11 }}", "needed more than"),
        ("{{ 'a' | center(10**11) }}", "needed more than"),
        ("{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}", "longer than 4000000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
    ],
)
def test_a_template_that_asks_for_too_much_is_a_request_error(source: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        render(source)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_an_endless_template_ends_in_any_thread_naming_its_line() -> None:
    errors: list[RequestError] = []

    def run() -> None:
        try:
            ChatTemplate(f"\n{ENDLESS}", "chat_template.jinja", {}, time_limit_s=0.3).render(MESSAGES)
        except RequestError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2
    assert all("chat_template.jinja:2" in str(error) and "ran out of time" in str(error) for error in errors)


def test_a_single_operation_that_never_returns_ends_too_and_the_next_rendering_works() -> None:
    # The comparison of n * n pairs runs in C, which never looks for signals.
    source = "{% set n = messages[0].n %}{{ [[7] * n] * n == [[7] * n] * n }}"
    template = ChatTemplate(source, "t.jinja", {}, time_limit_s=0.3)
    with pytest.raises(RequestError, match="ran out of time or memory"):
        template.render([{"role": "user", "n": 50_000}])
    assert template.render([{"role": "user", "n": 2}]) == "True"


def test_an_error_names_the_line_of_the_template() -> None:
    with pytest.raises(RequestError, match=r"chat_template\.jinja:3: .*roles must alternate"):
        render("a\n\n{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}")
    with pytest.raises(RequestError, match=r"chat_template\.jinja:2: .*has no attribute 'parts'"):
        render("{% for m in messages %}\n{{ m.parts.text }}{% endfor %}")
    with pytest.raises(LoadError, match=r"chat_template\.jinja:2: the chat template is malformed"):
        render("a\n{% endfor %}")
    with pytest.raises(LoadError, match="nested too deeply"):
        render("{{" + "(" * 20_000 + ")" * 20_000 + "}}")


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        [],
        {},
        {"role": "user", "content": "x"},
        ["hello"],
        [{"content": "x"}],
        [{"role": 3, "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [object()]}],
        [{"role": "user", "content": "x", "extra": {1, 2}}],
    ],
)
def test_malformed_messages_are_request_errors(messages: Any) -> None:
    with pytest.raises(RequestError, match="messages"):
        render("{{ messages[0].content }}", messages)


def test_what_messages_hold_is_text_and_never_template() -> None:
    evil = "{{ 7 * 7 }}{% for i in range(9) %}\u2028\n\ud83d"
    assert render("{{ messages[0].content }}", [{"role": "user", "content": evil}]) == evil


def test_the_process_that_renders_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVLLM_TEST_SECRET", "token")
    template = ChatTemplate("x", "t.jinja", {})
    assert template.render(MESSAGES) == "x"
    process = template._process
    assert process is not None
    with open(f"/proc/{process.pid}/environ") as environment:
        assert "TINYVLLM_TEST_SECRET" not in environment.read()


def test_many_renderings_share_one_process() -> None:
    template = ChatTemplate("{{ messages | tojson }}", "t.jinja", {})
    first = json.loads(template.render(MESSAGES))
    process = template._process
    assert first == MESSAGES
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(template.render(MESSAGES))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(result) for result in results] == [MESSAGES] * 8
    assert template._process is process
