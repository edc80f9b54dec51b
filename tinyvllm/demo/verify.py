"""Checks the checkpoint on held-out items through any engine, and prints such items for others to check with.

Knows no engine: ``verify`` is given a function that completes prompts greedily.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tinyvllm.demo import chat, stories, tasks

Complete = Callable[[list[str], int, list[str]], list[str]]
"""``complete(prompts, max_tokens, stop)``: the greedy completion of each prompt, without it, as plain text.

A completion ends at an end-of-sequence token, before a text of ``stop``, or after ``max_tokens`` tokens."""

THRESHOLDS = {
    "addition": 0.99,
    "copy": 0.99,
    "reverse": 0.99,
    "sort": 0.99,
    "who-has": 0.95,
    "chat": 0.95,
    "story": 0.95,
}
"""The share of held-out items of each task that must be right. Broken arithmetic anywhere brings them near zero."""

SAMPLED_TASKS = tuple(task for task in THRESHOLDS if task != "story")
"""The tasks that ``sample`` knows: those with one right answer."""

ANSWER_TOKENS = 16
STORY_TOKENS = 320


@dataclass(frozen=True, slots=True)
class Score:
    """How many of ``total`` items of one task were right."""

    task: str
    right: int
    total: int

    @property
    def is_passed(self) -> bool:
        """True if the share of right ones reaches the task's threshold."""
        return self.right >= THRESHOLDS[self.task] * self.total

    def __str__(self) -> str:
        return f"{self.task} {self.right}/{self.total} {100 * self.right / self.total:.1f} %"


@dataclass(frozen=True, slots=True)
class Report:
    """The scores of all tasks."""

    scores: Sequence[Score]

    @property
    def is_passed(self) -> bool:
        """True if every task reached its threshold."""
        return all(score.is_passed for score in self.scores)

    @property
    def lines(self) -> list[str]:
        """One line per task, such as ``addition 498/500 99.6 %``, with the threshold where it was missed."""
        return [
            str(score) if score.is_passed else f"{score}, below the required {100 * THRESHOLDS[score.task]:.0f} %"
            for score in self.scores
        ]


def verify(complete: Complete, seed: int = 0, items: int = 500) -> Report:
    """The scores of ``complete`` on ``items`` held-out items of each task and as many stories.

    ``seed`` chooses the items and their order. There are about 1,000 held-out additions; no more are asked.

    Raises:
        ValueError: ``items`` is less than 1.
    """
    _check_items(items)
    return Report([_verify_task(complete, task, seed, items) for task in THRESHOLDS])


def sample(task: str, items: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Held-out items of ``task``, at most ``items``: ``{"prompt": "12+7=", "answer": "19"}``, no two the same.

    Raises:
        ValueError: no such task, or ``items`` is less than 1.
    """
    if task not in SAMPLED_TASKS:
        raise ValueError(f"no task {task!r} with answers; there are {', '.join(SAMPLED_TASKS)}")
    _check_items(items)
    drawn = _chat_items(seed) if task == "chat" else tasks.held_out_items(task, seed)
    return ({"prompt": item.prompt, "answer": item.answer} for item in itertools.islice(drawn, items))


def _check_items(items: int) -> None:
    if items < 1:
        raise ValueError(f"items is {items}; at least 1 is needed")


def _verify_task(complete: Complete, task: str, seed: int, items: int) -> Score:
    if task == "story":
        return _verify_stories(complete, seed, items)
    asked = list(sample(task, items, seed))
    texts = complete([item["prompt"] for item in asked], ANSWER_TOKENS, ["\n"])
    right = sum(text == item["answer"] for text, item in zip(texts, asked, strict=True))
    return Score(task, right, len(asked))


def _verify_stories(complete: Complete, seed: int, items: int) -> Score:
    beginnings = list(itertools.islice(stories.held_out_beginnings(seed), items))
    texts = complete(beginnings, STORY_TOKENS, ["\n"])
    right = sum(stories.is_story(begun + text) for begun, text in zip(beginnings, texts, strict=True))
    return Score("story", right, items)


def _chat_items(seed: int) -> Iterator[tasks.Item]:
    """Held-out items of all tasks in turn, each as the only question of a conversation."""
    drawn = [tasks.held_out_items(task, seed) for task in tasks.TASKS]
    for group in zip(*drawn, strict=False):
        for item in group:
            yield tasks.Item(chat.render_prompt(item.prompt), item.answer, item.key)
