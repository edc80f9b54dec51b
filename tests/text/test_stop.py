from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.text.stop import StopChecker

LETTERS = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
MANY = settings(max_examples=500, deadline=None)


def naive(text: str, stops: list[str], includes: bool) -> tuple[str, str | None]:
    """The whole text at once: the first end of a stop string; of several there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if includes else end - len(stop)], stop
    return text, None


def cut(text: str, at: list[int]) -> list[str]:
    bounds = [0, *sorted(i % (len(text) + 1) for i in at), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


@MANY
@given(text=LETTERS, stops=STOPS, at=st.lists(st.integers(0, 99), max_size=10), includes=st.booleans())
def test_the_pieces_do_not_matter(text: str, stops: list[str], at: list[int], includes: bool) -> None:
    expected = naive(text, stops, includes)
    checker = StopChecker(stops, include_stop_str_in_output=includes)
    shown, stopped_by = "", None
    for piece in cut(text, at):
        new, stopped_by = checker.push(piece)
        shown += new
        assert expected[0].startswith(shown)  # nothing shown is taken back
        if stopped_by is not None:
            break
    assert (shown + checker.flush(), stopped_by) == expected


@MANY
@given(text=LETTERS, stops=STOPS)
def test_only_what_may_become_a_stop_string_is_held(text: str, stops: list[str]) -> None:
    checker, shown = StopChecker(stops), ""
    for i, character in enumerate(text, start=1):
        new, stopped_by = checker.push(character)
        if stopped_by is not None:
            return
        shown += new
        possible = [n for n in range(i + 1) if any(stop.startswith(text[i - n : i]) for stop in stops)]
        assert len(shown) == i - max(possible, default=0)


@MANY
@given(text=LETTERS, stops=STOPS, first=st.integers(0, 24))
def test_a_stop_string_counts_only_if_it_ends_after_the_first_tokens(text: str, stops: list[str], first: int) -> None:
    checker, shown, stopped_by = StopChecker(stops), "", None
    ends = [(i, s) for i in range(first + 1, len(text) + 1) for s in stops if text[:i].endswith(s)]
    for i, character in enumerate(text):
        new, stopped_by = checker.push(character, can_stop=i >= first)
        shown += new
        if stopped_by is not None:
            break
    if not ends:
        assert (shown + checker.flush(), stopped_by) == (text, None)
    else:
        end = min(i for i, _ in ends)
        stop = max((s for i, s in ends if i == end), key=len)
        assert stopped_by == stop
        # What ended before it was allowed to is text, though it may overlap the stop string.
        assert shown == text[: end - len(stop)][: len(shown)]
        assert len(shown) >= end - len(stop) or not shown


def test_a_stop_string_over_three_tokens_is_cut_off() -> None:
    checker = StopChecker(["\nUser:"])
    assert [tuple(checker.push(piece)) for piece in ("Yes.\n", "Us", "er: no")] == [
        ("Yes.", None),
        ("", None),
        ("", "\nUser:"),
    ]
    assert checker.flush() == ""


def test_text_that_turns_out_to_be_no_stop_string_is_released() -> None:
    checker = StopChecker(["END"])
    assert checker.push("the E") == ("the ", None)
    assert checker.push("N") == ("", None)
    assert checker.push("T") == ("ENT", None)
    assert checker.push("E") == ("", None)
    assert checker.flush() == "E"


def test_the_stop_string_that_is_complete_first_wins_then_the_longest() -> None:
    assert StopChecker(["bcd", "c"]).push("abcd") == ("ab", "c")
    assert StopChecker(["c", "bc"]).push("abcd") == ("a", "bc")


def test_long_repetitive_stop_strings_cost_no_more_than_short_ones() -> None:
    checker = StopChecker(["a" * 1000 + "b"] * 2 + ["a" * 900 + "c"])
    start = time.perf_counter()
    for _ in range(5_000):
        checker.push("a" * 4)
    assert time.perf_counter() - start < 2.0  # quadratic matching takes minutes
