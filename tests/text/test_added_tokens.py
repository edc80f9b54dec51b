"""Tokens that only the files beside tokenizer.json declare get the ids, flags and roles that transformers gives them.

The expected ids were printed by transformers 5.24, for each of these folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_checkpoint import single_byte_tokenizer
from tinyvllm.errors import LoadError
from tinyvllm.text.tokenizer import Tokenizer

START, END = "<|im_start|>", "<|im_end|>"
TEXT = f"<s>hi {START}hi {END} </s>"
UNKNOWN_EOS = f"tokenizer: no file gives eos_token '{END}' an id; it gets the next free one, 259, as in transformers"


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}


def load(folder: Path, config: Any, **files: Any) -> Tokenizer:
    single_byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer.from_folder(folder)


DECODER = {"259": token(START), "260": token(END)}
MOVED = "tokenizer: '<|im_{}|>' has id {}, as in transformers; added_tokens_decoder says {}"


@pytest.mark.parametrize(
    ("config", "files", "ids", "eos", "report"),
    [
        ({"added_tokens_decoder": DECODER, "eos_token": END}, {}, [259, 260], 260, ()),
        ({"extra_special_tokens": [START, END], "eos_token": END}, {}, [260, 259], 259, (UNKNOWN_EOS,)),
        ({"additional_special_tokens": [START, token(END)], "eos_token": "</s>"}, {}, [259, 260], 258, ()),
        ({"extra_special_tokens": {"image_token": START}, "eot_token": END}, {}, [260, 259], None, ()),
        ({"eos_token": token(END), "bos_token": START}, {"added_tokens": {END: 260, START: 259}}, [259, 260], 260, ()),
        (
            {"eos_token": "</s>"},
            {"special_tokens_map": {"eos_token": END, "additional_special_tokens": [START]}},
            [260, 259],
            259,
            (UNKNOWN_EOS,),
        ),
        # Where there is an added_tokens_decoder, the older files do not count.
        (
            {"eos_token": "</s>", "added_tokens_decoder": DECODER},
            {"special_tokens_map": {"eos_token": END}},
            [259, 260],
            258,
            (),
        ),
        (
            {"added_tokens_decoder": {"265": token(START), "300": token(END)}, "eos_token": END},
            {},
            [259, 260],
            260,
            (MOVED.format("start", 259, 265), MOVED.format("end", 260, 300)),
        ),
    ],
)
def test_declared_tokens_are_one_id_each_and_special(
    tmp_path: Path, config: Any, files: Any, ids: list[int], eos: int | None, report: tuple[str, ...]
) -> None:
    tokenizer = load(tmp_path, config, **files)
    start, end = ids
    assert tokenizer.encode(f"{START}hi{END}") == [start, 71, 72, end]
    assert tokenizer.special_token_ids == {256, 257, 258, start, end}
    assert tokenizer.decode(tokenizer.encode(TEXT)) == "hi hi  "
    assert tokenizer.eos_token_id == eos
    assert tokenizer.report == report


def test_a_token_that_is_special_only_in_the_configuration_is_skipped_in_text(tmp_path: Path) -> None:
    for config in (
        {"added_tokens_decoder": {"258": token("</s>")}},
        {"eos_token": "</s>"},
        {"pad_token": token("</s>")},
    ):
        load(tmp_path, config)
        content = json.loads((tmp_path / "tokenizer.json").read_text())
        for each in content["added_tokens"]:
            each["special"] = False
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        tokenizer = Tokenizer.from_folder(tmp_path)
        assert tokenizer.special_token_ids == {258}
        assert tokenizer.decode(tokenizer.encode("<s>a</s>")) == "<s>a"


def test_a_declared_token_that_is_not_special_stays_in_the_text(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, {"added_tokens_decoder": {"259": token("<tool>", special=False)}})
    assert tokenizer.encode("a<tool>") == [64, 259]
    assert tokenizer.decode([64, 259]) == "a<tool>"


def test_a_special_token_keeps_the_flags_that_it_is_written_with(tmp_path: Path) -> None:
    for config, files in (
        ({}, {"special_tokens_map": {"mask_token": token("<mask>", lstrip=True)}}),
        ({"added_tokens_decoder": {"259": token("<mask>", lstrip=True)}, "mask_token": "<mask>"}, {}),
    ):
        assert load(tmp_path, config, **files).encode("a <mask> b") == [64, 259, 220, 65]


def test_flags_and_nulls_are_no_tokens(tmp_path: Path) -> None:
    config = {"add_bos_token": True, "bos_token": None, "eos_token": "", "extra_special_tokens": None, "other_token": 5}
    tokenizer = load(tmp_path, config)
    assert tokenizer.special_tokens == {}
    assert tokenizer.vocab_size == 259
    assert tokenizer.report == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": 5}, "tokenizer_config.json: eos_token must be a string, or a mapping with content, got 5"),
        ({"eos_token": {"text": "x"}}, "eos_token must be a string, or a mapping with content"),
        ({"eos_token": "\ud800"}, "eos_token has a lone surrogate"),
        ({"extra_special_tokens": "x"}, "extra_special_tokens must be a list of tokens"),
        ({"additional_special_tokens": ["x", 3]}, r"additional_special_tokens\[1\] must be a string"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder must be a mapping of token id to token"),
        ({"added_tokens_decoder": {"x": token("a")}}, "added_tokens_decoder must be a token id from 0"),
        ({"added_tokens_decoder": {"9999999999": token("a")}}, "added_tokens_decoder must be a token id from 0"),
        ({"added_tokens_decoder": {"1": "a"}}, r"added_tokens_decoder\.'1' must be a mapping with content"),
        ({"added_tokens_decoder": {"1": {**token("a"), "lstrip": 1}}}, r"'1'\.lstrip must be true or false, got 1"),
    ],
)
def test_a_declaration_of_the_wrong_type_is_a_load_error_naming_its_key(
    tmp_path: Path, config: Any, message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        load(tmp_path, config)


def test_ids_in_the_oldest_file_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"added_tokens\.json: 'x' must be a token id .* got -1"):
        load(tmp_path, {}, added_tokens={"x": -1})
