"""Verification passes a perfect model, fails a broken one, and says so line by line."""

import functools
import itertools

import pytest

from tinyvllm.demo import stories, verify
from tinyvllm.demo.randomness import stream


@functools.cache
def answers() -> dict[str, str]:
    """The answers to what ``verify`` asks with seed 3 and 40 items."""
    return {item["prompt"]: item["answer"] for task in verify.SAMPLED_TASKS for item in verify.sample(task, 40, seed=3)}


@functools.cache
def rests() -> dict[str, str]:
    """What follows each beginning that ``verify`` asks for: the story that it was cut from, told again."""
    rng, found = stream("story beginnings", 3), dict[str, str]()
    for beginning in itertools.islice(stories.held_out_beginnings(3), 40):
        while True:
            story = stories.tell_story(rng)
            if stories.is_held_out_story(story):
                rng.randint(stories.opening(story).count(" ") + 1, story.count(" "))
                break
        assert story.startswith(beginning)
        found[beginning] = story.removeprefix(beginning)
    return found


def oracle(prompts: list[str], max_tokens: int, stop: list[str]) -> list[str]:
    """Every answer right, and every story ended as it was told."""
    return [(answers() | rests())[prompt] for prompt in prompts]


def test_a_perfect_model_passes() -> None:
    report = verify.verify(oracle, seed=3, items=40)
    assert report.is_passed
    assert report.lines[0] == "addition 40/40 100.0 %"
    assert report.lines[-1] == "story 40/40 100.0 %"


def test_a_model_that_says_nothing_fails_every_task() -> None:
    report = verify.verify(lambda prompts, max_tokens, stop: [""] * len(prompts), items=10)
    assert not report.is_passed
    assert report.lines[0] == "addition 0/10 0.0 %, below the required 99 %"
    assert not any(score.is_passed for score in report.scores)


def test_one_task_below_its_threshold_is_enough_to_fail() -> None:
    def cannot_sort(prompts: list[str], max_tokens: int, stop: list[str]) -> list[str]:
        return ["?" if "sort" in prompts[0] else text for text in oracle(prompts, max_tokens, stop)]

    report = verify.verify(cannot_sort, seed=3, items=40)
    assert [score.task for score in report.scores if not score.is_passed] == ["sort"]
    assert not report.is_passed


def test_sampled_additions_read_as_documented() -> None:
    items = list(verify.sample("addition", 20, seed=1))
    assert len(items) == 20
    for item in items:
        left, right = item["prompt"].removesuffix("=").split("+")
        assert item == {"prompt": f"{left}+{right}=", "answer": str(int(left) + int(right))}


def test_unknown_tasks_and_empty_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no task 'division'.*addition, copy"):
        verify.sample("division", 1)
    with pytest.raises(ValueError, match="items is 0"):
        verify.sample("addition", 0)
    with pytest.raises(ValueError, match="items is 0"):
        verify.verify(oracle, items=0)
