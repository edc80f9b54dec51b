from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, processors

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
        ("tokenizer.json", b"\xff\xfe", "is text in UTF-16"),
        ("tokenizer_config.json", b'{\n"eos_token": ,}', "tokenizer_config.json:2: is not valid JSON"),
        ("tokenizer_config.json", b'{"a": 1, "a": 2}', "'a' is there twice"),
        ("tokenizer_config.json", b"[]", "must hold a mapping"),
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


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template must be a string"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}', r"at chat_template\[0\]"),
        ("tokenizer_config.json", b'{"chat_template": "a\\n{% if %}"}', "tokenizer_config.json:2: the chat template"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: the chat template cannot be read"),
        ("chat_template.jinja", b"{{", "chat_template.jinja:1: the chat template is malformed"),
    ],
)
def test_a_damaged_template_of_the_checkpoint_leaves_prompts_alone(
    tokenizer_folder: Path, file: str, content: bytes, message: str
) -> None:
    (tokenizer_folder / file).write_bytes(content)
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    (line,) = tokenizer.report
    assert re.search(f"conversations will be refused: .*{message}", line)
    with pytest.raises(RequestError, match=message):
        tokenizer.apply_chat_template(MESSAGES)


@pytest.mark.parametrize(("content", "message"), [(None, r"none\.jinja"), ("{{", "none.jinja:1: .* malformed")])
def test_a_configured_template_that_cannot_be_used_is_a_load_error(
    tokenizer_folder: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tokenizer_folder / "none.jinja").write_text(content)
    with pytest.raises(LoadError, match=message):
        Tokenizer.from_folder(tokenizer_folder, chat_template=tokenizer_folder / "none.jinja")


@pytest.mark.parametrize("files", [["tokenizer.model"], ["vocab.json", "merges.txt"]])
def test_a_tokenizer_in_another_format_is_refused_with_the_command_that_converts_it(
    tokenizer_folder: Path, files: list[str]
) -> None:
    (tokenizer_folder / "tokenizer.json").unlink()
    for name in files:
        (tokenizer_folder / name).write_bytes(b"x")
    with pytest.raises(LoadError, match=" and ".join(files)) as caught:
        Tokenizer.from_folder(tokenizer_folder)
    folder = re.escape(str(tokenizer_folder))
    command = rf"AutoTokenizer\.from_pretrained\('{folder}'\)\.save_pretrained\('{folder}'\)"
    assert re.search(command, str(caught.value))
    with pytest.raises(LoadError, match=f"is not a tokenizer .* convert it: .*{command}"):
        Tokenizer.from_folder(tokenizer_folder / files[0])


def _broken(**parts: Any) -> dict[str, Any]:
    """The byte-level tokenizer with parts of its file replaced."""
    content = json.loads(byte_level_inner().to_str())
    return {**content, **parts}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # The library panics: a special token that the post-processor names is not there.
        (
            _broken(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                    "special_tokens": {},
                }
            ),
            "cannot encode .*no entry found",
        ),
        (
            _broken(
                model={"type": "BPE", "vocab": {}, "merges": [], "unk_token": "<unk>"},
                added_tokens=[],
                pre_tokenizer=None,
            ),
            "cannot encode 'a': .*<unk>",
        ),
        (
            _broken(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 5}),
            "cannot decode its own tokens: .*out of bounds",
        ),
    ],
    ids=["post-processor", "no vocabulary", "decoder"],
)
def test_a_tokenizer_that_fails_on_a_short_text_is_a_load_error(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LoadError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_without_a_token_for_unknown_text_loads_and_refuses_that_text(tmp_path: Path) -> None:
    inner = Inner(models.WordLevel({"hello": 0, "world": 1}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("hello world") == [0, 1]
    with pytest.raises(RequestError, match=r"the prompt cannot be encoded: .*UNK"):
        tokenizer.encode("what")


def test_a_panic_of_the_library_is_a_request_error() -> None:
    inner = byte_level_inner()
    inner.decoder = decoders.Strip("l", 0, 5)  # fails on the token "ll" alone
    tokenizer = Tokenizer(inner, {})
    with pytest.raises(RequestError, match=r"the tokens \[\d+\] cannot be decoded: .*out of bounds"):
        tokenizer.decode(tokenizer.encode("l"))
    for token_id in (-1, 2**32):
        with pytest.raises(RequestError, match="cannot be decoded"):
            tokenizer.decode([token_id])


def test_control_c_passes_through_the_tokenizer() -> None:
    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    tokenizer = Tokenizer(byte_level_inner(), {})
    tokenizer._inner = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("a")
    with pytest.raises(KeyboardInterrupt):
        tokenizer.decode([1])


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
