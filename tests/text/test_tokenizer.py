from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import processors

from tests.text.conftest import byte_level_inner
from tinyvllm.errors import LoadError, RequestError
from tinyvllm.text.tokenizer import Tokenizer


def test_a_folder_gives_tokens_special_ids_and_the_end_of_sequence(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    begin, end = tokenizer.token_to_id("<|begin|>"), tokenizer.token_to_id("<|end|>")
    assert tokenizer.eos_token_id == end
    assert tokenizer.special_token_ids == {begin, end}
    assert tokenizer.vocab_size == 256 + 5 + 4
    assert tokenizer.id_to_token(256) == "he"
    assert tokenizer.id_to_token(9_999) is None
    assert tokenizer.token_to_id("nothing") is None
    assert tokenizer.decode(tokenizer.encode("hello wörld")) == "hello wörld"


def test_the_file_itself_may_be_named(tokenizer_folder: Path) -> None:
    assert Tokenizer.from_folder(tokenizer_folder / "tokenizer.json").eos_token_id is not None


def test_special_tokens_are_added_and_skipped_as_asked() -> None:
    inner = byte_level_inner()
    begin = int(inner.token_to_id("<|begin|>") or 0)
    inner.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    tokenizer = Tokenizer(inner, {})
    assert tokenizer.encode("he") == [begin, 256]
    assert tokenizer.encode("he", add_special_tokens=False) == [256]
    assert tokenizer.decode([begin, 256]) == "he"
    assert tokenizer.decode([begin, 256], skip_special_tokens=False) == "<|begin|>he"
    assert tokenizer.decode_single(begin) == "<|begin|>"
    assert tokenizer.eos_token_id is None


def test_truncation_and_padding_in_the_file_do_not_touch_prompts(tmp_path: Path) -> None:
    inner = byte_level_inner()
    inner.enable_truncation(2)
    inner.enable_padding(length=8)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).encode("abcde")) == 5


def test_the_older_special_tokens_map_is_read_too(tmp_path: Path) -> None:
    byte_level_inner().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    assert Tokenizer.from_folder(tmp_path).eos_token_id is not None


def test_half_a_surrogate_pair_is_a_request_error(byte_level: Tokenizer) -> None:
    with pytest.raises(RequestError, match="character 2 is half of a surrogate pair"):
        byte_level.encode("ab\ud83d")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json: there is no tokenizer"),
        ("tokenizer.json", b"{", "is not a tokenizer"),
        ("tokenizer.json", b'{"model": 1}', "is not a tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "is not a tokenizer"),
        ("tokenizer_config.json", b'{\n"eos_token": ,}', "tokenizer_config.json:2: is not valid JSON"),
        ("tokenizer_config.json", b'{"a": 1, "a": 2}', "'a' is there twice"),
        ("tokenizer_config.json", b"[]", "must hold a mapping"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template must be a string"),
        ("tokenizer_config.json", b'{"chat_template": "a\\n{% if %}"}', "tokenizer_config.json:2: the chat template"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: the chat template cannot be read"),
        ("chat_template.jinja", b"{{", "chat_template.jinja:1: the chat template is malformed"),
    ],
)
def test_a_missing_or_damaged_file_is_a_load_error_naming_it(
    tokenizer_folder: Path, file: str, content: bytes | None, message: str
) -> None:
    if content is None:
        (tokenizer_folder / file).unlink()
    else:
        (tokenizer_folder / file).write_bytes(content)
    with pytest.raises(LoadError, match=message):
        Tokenizer.from_folder(tokenizer_folder)


def test_a_configured_template_that_is_not_there_is_a_load_error(tokenizer_folder: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.jinja"):
        Tokenizer.from_folder(tokenizer_folder, chat_template=tokenizer_folder / "none.jinja")


MESSAGES = [{"role": "user", "content": "Hi"}]


def test_a_configured_template_wins_over_the_file_and_that_over_the_configuration(tokenizer_folder: Path) -> None:
    assert Tokenizer.from_folder(tokenizer_folder).apply_chat_template(MESSAGES) == "<|begin|>user: Hi\n"
    (tokenizer_folder / "chat_template.jinja").write_text("file{{ eos_token }}")
    assert Tokenizer.from_folder(tokenizer_folder).apply_chat_template(MESSAGES) == "file<|end|>"
    mine = tokenizer_folder / "mine.jinja"
    mine.write_text("mine")
    assert Tokenizer.from_folder(tokenizer_folder, chat_template=mine).apply_chat_template(MESSAGES) == "mine"


def test_of_several_named_templates_default_is_meant(tokenizer_folder: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.from_folder(tokenizer_folder).apply_chat_template(MESSAGES) == "plain"


def test_without_a_template_a_conversation_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        byte_level.apply_chat_template(MESSAGES)
