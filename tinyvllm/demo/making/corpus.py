"""The training text: documents without end from a seed, each a list of pieces to learn or only to read.

Knows nothing about tokens. No held-out item or story is ever in it.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from tinyvllm.demo import chat, lexicon, tasks
from tinyvllm.demo.hold_out import is_held_out
from tinyvllm.demo.randomness import stream

_SHARES = {
    "addition": 6.0,
    "copy": 2.0,
    "reverse": 4.0,
    "sort": 4.0,
    "who-has": 6.0,
    "who-has drill": 5.0,
    "recall": 5.0,
    "story": 2.0,
    "chat": 3.5,
}
_DRILL_QUESTIONS = 8
_RECALL_PAIRS = (2, 6)
_RECALL_QUESTIONS = 16


class Piece(NamedTuple):
    """A stretch of a document; the model learns to write those with ``learn``, it only reads the others."""

    text: str
    learn: bool


def documents(seed: int | str) -> Iterator[list[Piece]]:
    """Training documents without end; the same for the same seed, and begun and ended with their special tokens."""
    rng = stream("corpus", seed)
    while True:
        for kind in rng.choices(list(_SHARES), list(_SHARES.values()), k=1000):
            yield draw_document(kind, rng)


def draw_document(kind: str, rng: random.Random) -> list[Piece]:
    """A random training document of ``kind``: a task, ``story``, ``chat``, ``who-has drill`` or ``recall``."""
    if kind == "story":
        return [Piece(chat.BEGIN, False), Piece(chat.draw_training_story(rng) + chat.END, True)]
    if kind == "chat":
        return _conversation(chat.draw_conversation(rng))
    if kind == "who-has drill":
        return _who_has_drill(rng)
    if kind == "recall":
        return _recall(rng)
    item = tasks.draw_training(kind, rng)
    # The question is random: learning to predict it would only add noise to the gradient.
    return [Piece(chat.BEGIN + item.prompt, False), Piece(item.answer + chat.END, True)]


def _conversation(messages: list[chat.Message]) -> list[Piece]:
    pieces = [Piece(chat.BEGIN, False)]
    for message in messages:
        whole = chat.render([message])
        if message.role == "assistant":
            head, tail = f"{chat.TURN}assistant\n", "\n"
            pieces += [Piece(head, False), Piece(whole[len(head) : -len(tail)], True), Piece(tail, False)]
        else:
            pieces.append(Piece(whole, False))
    return pieces


def _who_has_drill(rng: random.Random) -> list[Piece]:
    """One story of who has what, and many questions about it, some of them again.

    A single question teaches so little about looking things up that models stayed at guessing for thousands of
    steps; the repeated ones are easy to learn, and finding the thing in the story is then a small step more.
    """
    while True:
        story, owner = tasks.draw_possessions(rng)
        questions = [tasks.ask_who_has(story, thing) for thing in owner]
        if not any(is_held_out(question) for question in questions):
            break
    pieces = [Piece(chat.BEGIN + story, False)]
    things = rng.sample(list(owner), len(owner)) + rng.choices(list(owner), k=_DRILL_QUESTIONS)
    for thing in things[:_DRILL_QUESTIONS]:
        pieces += [Piece(tasks.ask_who_has("", thing), False), Piece(owner[thing], True)]
    return [*pieces, Piece(chat.END, False)]


def _recall(rng: random.Random) -> list[Piece]:
    """Pairs of a thing and a name, then the things again in any order: looking up, with nothing else to it."""
    pairs = rng.randint(*_RECALL_PAIRS)
    owner = dict(zip(rng.sample(lexicon.THINGS, pairs), rng.choices(lexicon.NAMES, k=pairs), strict=True))
    pieces = [Piece(chat.BEGIN + "".join(f" {thing} to {name}." for thing, name in owner.items()), False)]
    for thing in rng.choices(list(owner), k=_RECALL_QUESTIONS):
        pieces += [Piece(f" {thing} to", False), Piece(f" {owner[thing]}", True), Piece(".", False)]
    return [*pieces, Piece(chat.END, False)]
