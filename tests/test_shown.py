"""Values from files in messages: escaped, short, and cheap whatever their size."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tinyvllm._shown import MAX_SHOWN_CHARACTERS, printable, shown, some


@pytest.mark.parametrize("value", [None, True, 5, -1.5, "a", "é", [], {}, [1, "b"], {"a": [1, {"b": None}]}, (1, 2)])
def test_a_short_value_is_shown_as_python_writes_it_in_ascii(value: Any) -> None:
    assert shown(value) == ascii(value)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7, ["y"] * 10**6, dict.fromkeys(range(10**5), "z" * 1000), 10**4000, 10**100_000, "\ud800" * 1000,
        [[[[[["deep" * 50] * 50] * 50] * 50]]],
    ],
    ids=["text", "list", "mapping", "integer", "larger integer", "surrogates", "nested"],
)  # fmt: skip
def test_a_huge_value_is_cut_quickly(value: Any) -> None:
    start = time.perf_counter()
    text = shown(value)
    assert time.perf_counter() - start < 1
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= MAX_SHOWN_CHARACTERS + 3


def test_a_text_that_is_cut_ends_in_three_dots() -> None:
    assert shown("x" * 100) == "'" + "x" * 79 + "..."
    assert shown("x" * 78) == "'" + "x" * 78 + "'"


def test_control_characters_are_escaped() -> None:
    assert shown("\x1b[31m\x00\u202e") == r"'\x1b[31m\x00\u202e'"
    assert printable("/models/été") == "/models/été"
    assert printable("a\x1b[31m\n\ud800'b") == r"a\x1b[31m\n\ud800'b"
    assert some(["a\x07", *"bcdef"], 3) == r"'a\x07', 'b', 'c' and 3 more"
