"""Conversations through the doors that users have: ``LLM.chat`` and the ``messages`` of a batch file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders

from tests.tiny_checkpoint import CONFIG, single_byte_tokenizer
from tinyvllm import LLM, SamplingParams
from tinyvllm.errors import RequestError
from tinyvllm.run.chat import Conversation
from tinyvllm.run.jobs import JobReader
from tinyvllm.text.chat_options import ChatOptions

GREEDY = SamplingParams(temperature=0.0, max_tokens=2)
MESSAGE = {"role": "user", "content": "hi"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
TEMPLATE = (
    "{% if tools %}{{ tools[0].function.name }};{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<quiet>{% endif %}"
)


def write_model(folder: Path, tokenizer_config: dict[str, Any], **config: Any) -> Path:
    single_byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    config = {"eos_token": "</s>", "chat_template": TEMPLATE}
    return LLM(str(write_model(tmp_path_factory.mktemp("model"), config)), device="cpu", load_format="dummy")


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "user:hi;assistant:"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "user:hi;assistant:<quiet>"),
    ({"tools": TOOLS}, "add;user:hi;assistant:"),
    ({"add_generation_prompt": False}, "user:hi;"),
    ({"add_generation_prompt": False, "continue_final_message": True}, "user:hi"),
    ({"chat_template": "{{ messages[0].role }}"}, "user"),
    ({"chat_template": None, "tools": None, "chat_template_kwargs": {}}, "user:hi;assistant:"),
]


@pytest.mark.parametrize(("options", "prompt"), OPTIONS)
def test_every_option_reaches_the_template_through_each_door(llm: LLM, options: dict[str, Any], prompt: str) -> None:
    (output,) = llm.chat([MESSAGE], GREEDY, use_tqdm=False, **options)
    assert output.prompt == prompt
    assert llm.chat_prompt([MESSAGE], **options)["prompt"] == prompt
    line = json.dumps({"messages": [MESSAGE], **options}).encode()
    job = JobReader(GREEDY, llm.chat_prompt, seed=0).job(0, line)
    assert (job.error, job.prompt) == (None, llm.chat_prompt([MESSAGE], **options))
    assert llm.get_tokenizer().apply_chat_template([MESSAGE], **_flat(options)) == prompt


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """The options as transformers' ``apply_chat_template`` takes them: variables beside the others."""
    return {
        **{k: v for k, v in options.items() if k != "chat_template_kwargs"},
        **options.get("chat_template_kwargs", {}),
    }


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"continue_final_message": True}, "cannot both be true; .* give add_generation_prompt as false"),
    ({"add_generation_prompt": 1}, "add_generation_prompt must be true or false, got 1"),
    ({"tools": {"type": "function"}}, r"tools must be a list such as \[\{"),
    ({"tools": ["add"]}, r"tools\[0\] must be a mapping that describes a function, got 'add'"),
    ({"tools": [{"type": "function", "function": "add"}]}, r"tools\[0\]\.function must be a mapping"),
    ({"tools": [{"type": "web_search"}]}, r"tools\[0\]\.name must be the name of a function, got None"),
    ({"chat_template": 5}, "chat_template must be the text of a Jinja template, got 5"),
    (
        {"chat_template": "mine.jinja"},
        "chat_template must be the text of a Jinja template, or one of the names default, got 'mine.jinja'; for a",
    ),
    ({"chat_template": "{% if %}"}, "chat_template:1: the chat template is malformed"),
    ({"chat_template_kwargs": ["x"]}, "chat_template_kwargs must be a mapping such as"),
    ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs has the key 'a b', which is no name"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools is an argument of its own"),
    ({"chat_template_kwargs": {f"x{i}": 1 for i in range(65)}}, "must have at most 64 entries, got 65"),
    ({"chat_template_kwargs": {"enable_thinkng": False}}, "did you mean 'enable_thinking'"),
]


@pytest.mark.parametrize(("options", "error"), WRONG)
def test_a_wrong_option_is_refused_by_its_place_through_each_door(
    llm: LLM, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(RequestError, match=error):
        llm.chat([MESSAGE], GREEDY, use_tqdm=False, **options)
    line = json.dumps({"messages": [MESSAGE], **options}).encode()
    with pytest.raises(RequestError, match=error):
        raise RequestError(JobReader(GREEDY, llm.chat_prompt, seed=0).job(0, line).error)
    assert not llm.engine.has_unfinished_requests()


def test_the_demo_takes_text_parts_as_text() -> None:
    llm = LLM("demo", device="cpu")
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert llm.chat_prompt(parts) == llm.chat_prompt([MESSAGE])
    assert llm.chat(parts, GREEDY, use_tqdm=False)[0].prompt == llm.chat_prompt([MESSAGE])["prompt"]
    with pytest.raises(RequestError, match="does not read tools"):
        llm.chat([MESSAGE], GREEDY, tools=TOOLS)


def test_options_of_a_conversation_are_refused_beside_a_prompt(llm: LLM) -> None:
    reader = JobReader(GREEDY, llm.chat_prompt, seed=0)
    for prompt in ({"prompt": "x"}, {"prompt_token_ids": [1]}):
        job = reader.job(0, json.dumps({**prompt, "tools": TOOLS}).encode())
        assert job.error is not None
        assert job.error.startswith("tools is for messages, and the line has prompt")
        assert reader.job(0, json.dumps({**prompt, "tools": None}).encode()).error is None


def test_an_unknown_option_is_refused_with_the_nearest(llm: LLM) -> None:
    with pytest.raises(RequestError, match="unknown option 'tool'; did you mean 'tools'"):
        llm.chat_prompt([MESSAGE], tool=[])


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (MESSAGE, "messages must be a list of messages"),
        ("hi", "messages must be a list of messages"),
        (None, "messages must be a list of messages"),
        ([], "messages must be a list of messages"),
        ([[]], r"messages\[0\] must be a list of messages"),
        ([[MESSAGE], MESSAGE], r"messages\[1\]"),
        ([MESSAGE, "hi"], "messages"),
        (
            [[MESSAGE], [{"role": "user", "content": [{"type": "image"}]}]],
            r"messages\[1\]\[0\]\.content\[0\]\.type must be",
        ),
        ([{"role": "user", "contnt": "hi"}], r"messages\[0\] has the unknown key 'contnt'; did you mean 'content'"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_place(llm: LLM, messages: Any, error: str) -> None:
    with pytest.raises(RequestError, match=error):
        llm.chat(messages, GREEDY, use_tqdm=False)


def test_several_conversations_share_the_options(llm: LLM) -> None:
    outputs = llm.chat([[MESSAGE], [MESSAGE, MESSAGE]], GREEDY, use_tqdm=False, add_generation_prompt=False)
    assert [output.prompt for output in outputs] == ["user:hi;", "user:hi;user:hi;"]


def test_an_eos_token_that_only_the_configuration_names_ends_completions(tmp_path: Path) -> None:
    decoder = {"259": {"content": "<|im_start|>", "special": True}, "260": {"content": "<|im_end|>", "special": True}}
    config = {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>"}
    folder = write_model(tmp_path, config, vocab_size=261, eos_token_id=None)
    llm = LLM(str(folder), device="cpu", load_format="dummy")
    params = SamplingParams(temperature=0.0, max_tokens=5, allowed_token_ids=[71, 260], logit_bias={260: 100.0})
    (output,) = llm.generate("<|im_start|>hi<|im_end|>", params, use_tqdm=False)
    assert output.prompt_token_ids == [259, 71, 72, 260]
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("", "stop")
    assert output.outputs[0].token_ids == [260]


def test_an_eos_token_that_the_model_does_not_have_is_reported_and_harmless(tmp_path: Path) -> None:
    llm = LLM(str(write_model(tmp_path, {"eos_token": "<|im_end|>"})), device="cpu", load_format="dummy")
    assert [line for line in llm.report if line.startswith("tokenizer")] == [
        "tokenizer: no file gives eos_token '<|im_end|>' an id; it gets the next free one, 259, as in transformers",
        "tokenizer: eos_token_id 259 is not in the vocabulary of 259, ignored",
    ]
    (output,) = llm.generate("hi", SamplingParams(max_tokens=3, min_tokens=2), use_tqdm=False)
    assert len(output.outputs[0].token_ids) >= 2


def test_a_template_that_does_not_parse_leaves_prompts_alone(tmp_path: Path) -> None:
    folder = write_model(tmp_path, {"chat_template": "{% for m in messages %}"})
    llm = LLM(str(folder), device="cpu", load_format="dummy")
    assert len(llm.generate("hi", GREEDY, use_tqdm=False)) == 1
    assert any("conversations will be refused" in line for line in llm.report)
    with pytest.raises(RequestError, match=r"tokenizer_config\.json:1: the chat template is malformed.*prompts work"):
        llm.chat([MESSAGE], GREEDY, use_tqdm=False)


def test_a_tokenizer_that_panics_later_fails_that_request_and_no_other(tmp_path: Path) -> None:
    folder = write_model(tmp_path, {}, vocab_size=260)
    inner = single_byte_tokenizer()
    inner.add_tokens(["→"])
    inner.decoder = decoders.Strip("→", 0, 5)  # panics on that token, which is not among those tried at the start
    inner.save(str(folder / "tokenizer.json"))
    llm = LLM(str(folder), device="cpu", load_format="dummy")
    params = [SamplingParams(max_tokens=3, allowed_token_ids=[token_id]) for token_id in (259, 71)]
    with pytest.raises(RequestError, match="cannot be decoded"):
        llm.generate("hi", params[0], use_tqdm=False)
    assert llm.generate("hi", params[1], use_tqdm=False)[0].outputs[0].text == "hhh"
    pieces = Conversation(llm, params[0], options=ChatOptions(chat_template="{{ messages[0].role }}")).answer("hi")
    with pytest.raises(RequestError, match="cannot be decoded"):
        list(pieces)
    llm.engine.check()
