from __future__ import annotations

import json
import threading
from datetime import datetime
from typing import Any

import pytest

from tinyvllm.errors import RequestError
from tinyvllm.text.chat_options import ChatOptions
from tinyvllm.text.chat_template import ChatTemplate, ChatTemplates, TemplateSource
from tinyvllm.text.template_process import TemplateProcess

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


def template_of(source: str, time_limit_s: float = 2.0) -> ChatTemplate:
    file = TemplateSource(source, "model/chat_template.jinja")
    return ChatTemplate(file, {"bos_token": "<s>"}, TemplateProcess(time_limit_s))


def render(source: str, messages: Any = MESSAGES, **options: Any) -> str:
    return template_of(source).render(messages, ChatOptions(**options))


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
        ("{{ documents is none }}", "True"),
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
            template_of(f"\n{ENDLESS}", time_limit_s=0.3).render(MESSAGES)
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
    template = template_of(source, time_limit_s=0.3)
    with pytest.raises(RequestError, match="ran out of time or memory"):
        template.render([{"role": "user", "n": 50_000}])
    assert template.render([{"role": "user", "n": 2}]) == "True"


def test_an_error_names_the_line_of_the_template() -> None:
    with pytest.raises(RequestError, match=r"chat_template\.jinja:3: .*roles must alternate"):
        render("a\n\n{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}")
    with pytest.raises(RequestError, match=r"chat_template\.jinja:2: .*has no attribute 'parts'"):
        render("{% for m in messages %}\n{{ m.parts.text }}{% endfor %}")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("a\n{% endfor %}", r"chat_template\.jinja:2: the chat template is malformed: .*endfor"),
        ("{% for m in messages %}", r"jinja:1: the chat template is malformed: Unexpected end"),
        ("{% do messages %}", r"jinja:1: the chat template is malformed: .*unknown tag 'do'"),
        ("{{" + "(" * 20_000 + ")" * 20_000 + "}}", "nested too deeply"),
        ("{{ " + "9" * 5000 + " }}", "the chat template is malformed"),
        ("x" * 1_000_001, "1000001 characters"),
        ("{{ '\x1b[2J' \x1b }}", r"\\x1b"),
    ],
)
def test_a_malformed_template_is_an_error_of_the_first_conversation(source: str, problem: str) -> None:
    template = template_of(source)
    assert template.problem is not None
    with pytest.raises(RequestError, match=problem) as caught:
        template.render(MESSAGES)
    assert "prompts work" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_what_messages_hold_is_text_and_never_template() -> None:
    evil = "{{ 7 * 7 }}{% for i in range(9) %}\u2028\n\ud83d"
    assert render("{{ messages[0].content }}", [{"role": "user", "content": evil}]) == evil


def test_the_process_that_renders_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVLLM_TEST_SECRET", "token")
    process = TemplateProcess()
    assert process.render("x", {}).text == "x"
    with open(f"/proc/{process.pid}/environ") as environment:
        assert "TINYVLLM_TEST_SECRET" not in environment.read()


def test_many_renderings_of_several_templates_share_one_process() -> None:
    process = TemplateProcess()
    sources = ["{{ messages | tojson }}", "{{ messages[0] | tojson }}"]
    template, other = (ChatTemplate(TemplateSource(source, "t.jinja"), {}, process) for source in sources)
    assert json.loads(template.render(MESSAGES)) == MESSAGES
    pid = process.pid
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(template.render(MESSAGES))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(result) for result in results] == [MESSAGES] * 8
    assert json.loads(other.render(MESSAGES)) == MESSAGES[0]
    assert process.pid == pid


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Once upon "}]


def test_the_last_message_is_continued_where_it_ends() -> None:
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert render(CHATML, TALK, **options) == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nOnce upon ")
    trimmed = CHATML.replace("m.content", "m.content | trim")
    assert render(trimmed, TALK, **options).endswith("assistant\nOnce upon")
    parts = [TALK[0], {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render(CHATML, parts, **options).endswith("assistant\na\nb")


def test_a_template_that_drops_the_last_message_cannot_continue_it() -> None:
    with pytest.raises(RequestError, match="leaves out the end of the last message"):
        render("{{ messages[0].content }}", TALK, add_generation_prompt=False, continue_final_message=True)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    source = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    with pytest.raises(RequestError, match=r"messages\[0\]\.content must be text, because continue_final_message"):
        render(source, [call], add_generation_prompt=False, continue_final_message=True)


def test_variables_reach_the_template_and_a_misspelt_one_is_refused() -> None:
    source = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    assert render(source) == ""
    assert render(source, chat_template_kwargs={"enable_thinking": False}) == "<think></think>"
    assert render(source, chat_template_kwargs={"for_another_model": 1}) == ""
    with pytest.raises(RequestError, match=r"enable_thinkin is not read .* did you mean 'enable_thinking'"):
        render(source, chat_template_kwargs={"enable_thinkin": False})


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def test_tools_reach_a_template_that_reads_them_and_others_refuse_them() -> None:
    assert render("{{ tools[0].function.name }}", tools=TOOLS) == "add"
    assert render("{{ tools is none }}", tools=[]) == "True"
    with pytest.raises(RequestError, match="does not read tools"):
        render(CHATML, tools=TOOLS)


def test_among_named_templates_tools_and_names_decide() -> None:
    sources = {
        name: TemplateSource(f"{name}{{{{ tools and 1 }}}}", "t.jinja") for name in ("default", "tool_use", "rag")
    }
    templates = ChatTemplates(sources, {})

    def rendered(chat_template: str | None, tools: Any = None) -> str:
        template = templates.choose(chat_template, has_tools=bool(tools))
        return template.render(MESSAGES, ChatOptions(tools=tools))

    assert rendered(None) == "defaultNone"
    assert rendered(None, TOOLS) == "tool_use1"
    assert rendered("rag") == "ragNone"
    assert rendered("{{ messages[0].role }}") == "system"
    with pytest.raises(RequestError, match="text of a Jinja template, or one of the names default, tool_use, rag"):
        templates.choose("templates/mine.jinja", has_tools=False)
    with pytest.raises(RequestError, match="none is the default; give chat_template: rag"):
        ChatTemplates({"rag": sources["rag"]}, {}).choose(None, has_tools=False)
