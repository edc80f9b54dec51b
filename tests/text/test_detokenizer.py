from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinyvllm.text.byte_level import byte_characters
from tinyvllm.text.detokenizer import IncrementalDetokenizer
from tinyvllm.text.tokenizer import Tokenizer

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MANY = settings(max_examples=300, deadline=None)


def pieces(tokenizer: Tokenizer, token_ids: Sequence[int], prompt: Sequence[int] = (), **how: Any) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, **how)
    return [*(detokenizer.add(token_id) for token_id in token_ids), detokenizer.flush()]


@MANY
@given(text=TEXTS)
@example(text="👩‍👩‍👧 é e\u0301 中 \x00\ufffd\ufeff")
@example(text=REPLACEMENT * 9)
def test_any_unicode_text_survives_byte_level_encoding_and_incremental_decoding(
    byte_level: Tokenizer, text: str
) -> None:
    token_ids = byte_level.encode(text)
    assert "".join(pieces(byte_level, token_ids, skip_special_tokens=False)) == text


@MANY
@given(text=TEXTS, prompt=TEXTS)
@example(text=REPLACEMENT * 9, prompt="👩👩")
@example(text="▁ ▁", prompt="")
def test_any_unicode_text_survives_byte_fallback_and_incremental_decoding(
    byte_fallback: Tokenizer, text: str, prompt: str
) -> None:
    seen = text.replace("▁", " ")  # the space's stand-in is the one character that this tokenizer cannot tell apart
    assert "".join(pieces(byte_fallback, byte_fallback.encode(text))) == seen
    # After a prompt nothing is stripped: the text goes on from it.
    both = byte_fallback.encode(prompt + text)
    for cut in {0, len(both) // 2, len(both)}:
        before = byte_fallback.decode(both[:cut])
        if REPLACEMENT not in before:
            after = "".join(pieces(byte_fallback, both[cut:], both[:cut]))
            assert before + after == (prompt + text).replace("▁", " ")


@MANY
@given(token_ids=st.lists(st.integers(0, 270), max_size=30), skips=st.booleans())
@example(token_ids=[ord("a"), 256 + 5, 128, 256 + 5, 129], skips=True)
def test_any_token_ids_of_a_byte_level_tokenizer_give_what_decoding_all_gives(
    byte_level: Tokenizer, token_ids: list[int], skips: bool
) -> None:
    whole = byte_level.decode(token_ids, skip_special_tokens=skips)
    assert "".join(pieces(byte_level, token_ids, skip_special_tokens=skips)) == whole


@MANY
@given(text=TEXTS)
def test_no_piece_holds_half_a_character(byte_level: Tokenizer, byte_fallback: Tokenizer, text: str) -> None:
    for tokenizer in (byte_level, byte_fallback):
        whole = text.replace("▁", " ") if tokenizer is byte_fallback else text
        shown = ""
        for piece in pieces(tokenizer, tokenizer.encode(text), skip_special_tokens=False):
            shown += piece
            assert whole.startswith(shown)


def test_an_incomplete_character_is_held_and_comes_as_u_fffd_at_the_end(
    byte_level: Tokenizer, byte_fallback: Tokenizer
) -> None:
    for tokenizer in (byte_level, byte_fallback):
        euro = tokenizer.encode("a€")
        assert pieces(tokenizer, euro[:-1])[-2:] in (["", REPLACEMENT], ["", REPLACEMENT * 2])
        assert "".join(pieces(tokenizer, euro[:-1])) == tokenizer.decode(euro[:-1])


def test_byte_tokens_that_never_become_a_character_are_not_held_for_ever(byte_fallback: Tokenizer) -> None:
    stray = byte_fallback.token_to_id("<0xFF>")
    assert stray is not None
    shown = pieces(byte_fallback, [stray] * 100)
    assert len("".join(shown)) == 100
    assert "".join(shown[:20])


def test_special_tokens_are_left_out_or_shown(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    for tokenizer in (byte_level, byte_fallback):
        end = tokenizer.eos_token_id
        assert end is not None
        he = tokenizer.token_to_id("he")
        assert he is not None
        assert "".join(pieces(tokenizer, [he, end, end, he])) == "hehe"
        assert "".join(pieces(tokenizer, [he, end, he], skip_special_tokens=False)) == "he<|end|>he"


def test_ten_thousand_skipped_tokens_do_not_slow_down(byte_fallback: Tokenizer) -> None:
    end = byte_fallback.eos_token_id
    assert end is not None
    detokenizer = IncrementalDetokenizer(byte_fallback, [])
    assert {detokenizer.add(end) for _ in range(10_000)} == {""}
    assert len(detokenizer._inner._window) == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spaces", "expected"), [(True, "hello [SEP] [CLS] worlds"), (False, "hello [SEP][CLS] worlds")]
)
def test_spaces_between_special_tokens_are_as_asked(word_piece: Tokenizer, spaces: bool, expected: str) -> None:
    token_ids = [1, 4, 5, 2, 3]
    how: dict[str, Any] = {"skip_special_tokens": False, "spaces_between_special_tokens": spaces}
    assert "".join(pieces(word_piece, token_ids, **how)) == expected
    assert "".join(pieces(word_piece, token_ids[1:], token_ids[:1], **how)) == expected.removeprefix("hello")


def test_ids_without_a_token_are_silent(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    for tokenizer in (byte_level, byte_fallback):
        assert "".join(pieces(tokenizer, [9_999, 9_999])) == ""


def test_the_byte_alphabet_is_the_one_of_the_tokenizers_package() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_characters()) == sorted(ByteLevel.alphabet())
    assert len(set(byte_characters())) == 256
