"""The parser takes every story told, and nothing else."""

import pytest

from tinyvllm.demo import grammar, lexicon, stories
from tinyvllm.demo.grammar import END, Grammar, GrammarError, Line
from tinyvllm.demo.randomness import stream


@pytest.fixture(scope="module")
def told() -> list[str]:
    rng = stream("test stories", 0)
    return [stories.tell_story(rng) for _ in range(200)]


def test_every_told_story_is_accepted(told: list[str]) -> None:
    assert all(stories.is_story(story) for story in told)


def test_the_same_seed_tells_the_same_stories(told: list[str]) -> None:
    rng = stream("test stories", 0)
    assert [stories.tell_story(rng) for _ in range(200)] == told


def test_a_story_with_a_word_dropped_or_doubled_is_rejected(told: list[str]) -> None:
    for story in told[:20]:
        words = story.split(" ")
        for index in range(len(words)):
            dropped = " ".join(words[:index] + words[index + 1 :])
            doubled = " ".join(words[: index + 1] + words[index:])
            assert not stories.is_story(dropped)
            assert not stories.is_story(doubled)


def test_a_story_cut_short_is_rejected(told: list[str]) -> None:
    for story in told[:10]:
        assert not any(stories.is_story(story[:length]) for length in range(len(story)))


def test_a_story_that_forgets_who_it_is_about_is_rejected(told: list[str]) -> None:
    for story in told:
        hero = grammar.parse(stories.STORY_GRAMMAR, story).slots["hero"]
        stranger = next(name for name in lexicon.NAMES if name not in story)
        head, _, tail = story.rpartition(hero)
        if head.count(hero) > 0:
            assert not stories.is_story(head + stranger + tail)


def test_text_after_the_end_is_rejected(told: list[str]) -> None:
    assert not stories.is_story(told[0] + " ")
    assert not stories.is_story(f"{told[0]} {told[1]}")


def test_the_error_says_where_the_text_leaves_the_grammar() -> None:
    lines = {"start": (Line("A {+pet:animal} came.", "next"),), "next": (Line("The {pet} left.", END),)}
    tiny = Grammar("start", lines, {"animal": ("cat", "dog")})
    assert grammar.parse(tiny, "A cat came. The cat left.").slots == {"pet": "cat"}
    with pytest.raises(GrammarError, match=r"character 11.*The dog left"):
        grammar.parse(tiny, "A cat came. The dog left.")
