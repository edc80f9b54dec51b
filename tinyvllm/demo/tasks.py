"""The tasks with checkable answers: items to train on, and held-out items to be judged by.

Every prompt ends so that the answer follows at once, with no space before it, and then the end of the text.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tinyvllm.demo import lexicon
from tinyvllm.demo.hold_out import is_held_out
from tinyvllm.demo.randomness import stream

MIN_DIGITS, MAX_DIGITS = 3, 10
"""How many digits ``copy``, ``reverse`` and ``sort`` work on."""

MAX_OPERAND = 99


@dataclass(frozen=True, slots=True)
class Item:
    """One question: its ``key`` decides whether it is held out, ``answer`` alone is right."""

    prompt: str
    answer: str
    key: str


def draw(task: str, rng: random.Random) -> Item:
    """A random item of ``task``, held out or not.

    Raises:
        KeyError: there is no such task.
    """
    return TASKS[task](rng)


def draw_training(task: str, rng: random.Random) -> Item:
    """A random item of ``task`` that may be trained on."""
    while True:
        item = draw(task, rng)
        if not is_held_out(item.key):
            return item


def held_out_items(task: str, seed: int) -> Iterator[Item]:
    """Different held-out items of ``task`` in an order given by ``seed``; of addition there are about 1,000."""
    if task == "addition":
        yield from _held_out_additions(seed)
        return
    rng = stream(f"held-out {task}", seed)
    seen: set[str] = set()
    while True:
        item = draw(task, rng)
        if is_held_out(item.key) and item.prompt not in seen:
            seen.add(item.prompt)
            yield item


def addition(left: int, right: int) -> Item:
    """The item ``left+right=``. Its key ignores the order, so that 7+12 does not give 12+7 away."""
    return Item(f"{left}+{right}=", str(left + right), f"addition {min(left, right)}+{max(left, right)}")


def digits(task: str, text: str) -> Item:
    """The item that asks to ``copy``, ``reverse`` or ``sort`` the digits ``text``; all three have one key."""
    answer = {"copy": text, "reverse": text[::-1], "sort": "".join(sorted(text))}[task]
    return Item(f"{task} {text}=", answer, f"digits {text}")


def draw_possessions(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A story of people who are given things and pass them on, and who has each thing in the end."""
    people = rng.sample(lexicon.NAMES, rng.randint(2, 4))
    things = rng.sample(lexicon.THINGS, rng.randint(1, 4))
    owner = {thing: rng.choice(people) for thing in things}
    sentences = [f"Grandma gives the {thing} to {owner[thing]}." for thing in things]
    for _ in range(rng.randint(0, 4)):
        thing = rng.choice(things)
        giver, taker = owner[thing], rng.choice([name for name in people if name != owner[thing]])
        sentences.append(f"{giver} gives the {thing} to {taker}.")
        owner[thing] = taker
    return " ".join(sentences), owner


def ask_who_has(story: str, thing: str) -> str:
    """``story`` with the question after it."""
    return f"{story} Who has the {thing}?"


def _draw_addition(rng: random.Random) -> Item:
    return addition(rng.randint(0, MAX_OPERAND), rng.randint(0, MAX_OPERAND))


def _draw_digits(task: str) -> Callable[[random.Random], Item]:
    def draw_digits(rng: random.Random) -> Item:
        count = rng.randint(MIN_DIGITS, MAX_DIGITS)
        return digits(task, f"{rng.randrange(10**count):0{count}d}")

    return draw_digits


def _draw_who_has(rng: random.Random) -> Item:
    story, owner = draw_possessions(rng)
    thing = rng.choice(list(owner))
    prompt = ask_who_has(story, thing)
    return Item(prompt, owner[thing], prompt)


def _held_out_additions(seed: int) -> Iterator[Item]:
    items = [addition(left, right) for left in range(MAX_OPERAND + 1) for right in range(MAX_OPERAND + 1)]
    held_out = [item for item in items if is_held_out(item.key)]
    stream("held-out addition", seed).shuffle(held_out)
    yield from held_out


TASKS: dict[str, Callable[[random.Random], Item]] = {
    "addition": _draw_addition,
    "copy": _draw_digits("copy"),
    "reverse": _draw_digits("reverse"),
    "sort": _draw_digits("sort"),
    "who-has": _draw_who_has,
}
"""How to draw an item of each task."""
