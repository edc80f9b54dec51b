"""The answers are right, and the same items come back from the same seed."""

import itertools
import re

import pytest

from tinyvllm.demo import tasks
from tinyvllm.demo.making import corpus
from tinyvllm.demo.randomness import stream


def test_addition_reads_as_documented() -> None:
    item = tasks.addition(12, 7)
    assert (item.prompt, item.answer) == ("12+7=", "19")


def test_answers_are_right() -> None:
    rng = stream("test answers", 0)
    for _ in range(200):
        item = tasks.draw("addition", rng)
        left, right = item.prompt.removesuffix("=").split("+")
        assert int(item.answer) == int(left) + int(right)
        copied, turned, ordered = (tasks.draw(task, rng) for task in ("copy", "reverse", "sort"))
        assert f"copy {copied.answer}=" == copied.prompt
        assert f"reverse {''.join(reversed(turned.answer))}=" == turned.prompt
        assert list(ordered.answer) == sorted(ordered.prompt.removeprefix("sort ").removesuffix("="))


def test_who_has_follows_the_thing_from_hand_to_hand() -> None:
    rng = stream("test who-has", 0)
    for _ in range(200):
        item = tasks.draw("who-has", rng)
        story, thing = re.fullmatch(r"(.*) Who has the (\w+)\?", item.prompt).groups()  # type: ignore[union-attr]
        holder = ""
        for sentence in story.split(". "):
            if match := re.fullmatch(rf"(\w+) gives the {thing} to (\w+)\.?", sentence):
                assert match[1] == (holder or "Grandma")
                holder = match[2]
        assert item.answer == holder


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_same_seed_gives_the_same_items_and_no_item_twice(task: str) -> None:
    first, again, other = (
        [item.prompt for item in itertools.islice(tasks.held_out_items(task, seed), 50)] for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other
    assert len(set(first)) == 50


def test_the_same_seed_gives_the_same_corpus() -> None:
    first, again, other = (list(itertools.islice(corpus.documents(seed), 100)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
