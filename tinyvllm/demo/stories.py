"""The little stories: one grammar, from which stories are told and against which they are checked."""

import random
from collections.abc import Iterator

from tinyvllm.demo import grammar, lexicon
from tinyvllm.demo.grammar import END, Grammar, Line
from tinyvllm.demo.hold_out import is_held_out
from tinyvllm.demo.randomness import stream

_LINES = {
    "opening": (
        Line("Once upon a time there was a {+trait:trait} {+kind:kind} named {+hero:name}.", "home", 3),
        Line("There once was a {+trait:trait} {+kind:kind} called {+hero:name}.", "home"),
        Line("Long ago a {+trait:trait} {+kind:kind} named {+hero:name} lived {+home:home}.", "trouble"),
        Line("In a house {+home:home} lived {+hero:name} the {+trait:trait} {+kind:kind}.", "trouble"),
    ),
    "home": (
        Line("{hero} lived {+home:home}.", "trouble"),
        Line("{hero} the {kind} had a house {+home:home}.", "trouble"),
        Line("This {kind} lived {+home:home}.", "trouble"),
    ),
    "trouble": (
        Line("One {+time:time} {hero} lost a {+colour:colour} {+thing:thing}.", "ask"),
        Line("One {+time:time} the {trait} {kind} could not find the {+colour:colour} {+thing:thing}.", "ask"),
        Line("One {+time:time} {hero} made a {+colour:colour} {+thing:thing} for {+friend:name}.", "friend", 2),
    ),
    # First plot: something is lost; helpers look in one place after the other until one finds it.
    "ask": (
        Line("{hero} asked {+helper:name} the {+helper_kind:kind} for help.", "look"),
        Line("So {hero} went to {+helper:name} the {+helper_kind:kind}.", "look"),
        Line("Then {hero} met {+helper:name} the {+helper_kind:kind}.", "look"),
    ),
    "look": (
        Line("{helper} looked {+spot:spot}.", "result"),
        Line("{helper} and {hero} looked {+spot:spot}.", "result"),
        Line("The {helper_kind} helped {hero} to look {+spot:spot}.", "result"),
    ),
    "result": (
        Line("But the {thing} was not there.", "ask"),
        Line("They found nothing {spot}.", "ask"),
        Line("There it was, the {colour} {thing}!", "thanks", 2),
        Line("And {helper} found the {colour} {thing} {spot}!", "thanks"),
    ),
    "thanks": (
        Line("{hero} thanked {helper} the {helper_kind}.", "evening"),
        Line('"Thank you, {helper}," said {hero} the {kind}.', "evening"),
    ),
    "evening": (
        Line("Then {hero} and {helper} played with the {thing}.", END),
        Line("Then {hero} took the {colour} {thing} home, and all was well {home}.", END),
        Line("From then on the {kind} and the {helper_kind} were friends.", END),
    ),
    # Second plot: a present for a friend; others meet the hero on the way and would like to have it.
    "friend": (
        Line("{friend} was a {+friend_kind:kind} and lived {+friend_home:home}.", "way"),
        Line("{friend} was a {+friend_kind:kind}.", "way"),
    ),
    "way": (
        Line("On the way {hero} met {+other:name} the {+other_kind:kind} {+spot:spot}.", "wish"),
        Line("{+other:name} the {+other_kind:kind} was sitting {+spot:spot}.", "wish"),
    ),
    "wish": (
        Line('"Is the {thing} for me?" asked {other}.', "refusal"),
        Line("The {other_kind} wanted to have the {colour} {thing}.", "refusal"),
    ),
    "refusal": (
        Line('"No, {other}, it is for {friend}," said {hero}.', "way"),
        Line("But it was for {friend} the {friend_kind}.", "way"),
        Line('"No, {other}, it is for {friend}," said the {kind}.', "arrival", 2),
        Line("But {hero} had made it for {friend}.", "arrival"),
    ),
    "arrival": (
        Line("At last {hero} gave the {colour} {thing} to {friend}.", "joy"),
        Line("Then {hero} found {friend} {+spot:spot}.", "joy"),
    ),
    "joy": (
        Line("{friend} the {friend_kind} was very happy with the {thing}.", END),
        Line('"What a nice {colour} {thing}!" said {friend}, and {hero} smiled.', END),
        Line("{friend} took the {thing}, and the {kind} went home and slept well {home}.", END),
    ),
}

STORY_GRAMMAR = Grammar(
    start="opening",
    lines=_LINES,
    words={
        "name": lexicon.NAMES,
        "kind": lexicon.KINDS,
        "trait": lexicon.TRAITS,
        "colour": lexicon.COLOURS,
        "thing": lexicon.THINGS,
        "home": lexicon.HOMES,
        "spot": lexicon.SPOTS,
        "time": lexicon.TIMES,
    },
)
"""Every story that the checkpoint may tell."""


def tell_story(rng: random.Random) -> str:
    """A random story, held out or not."""
    return grammar.tell(STORY_GRAMMAR, rng)


def is_story(text: str) -> bool:
    """True if ``text`` is a whole story of the grammar: every sentence known, in order, and nobody mixed up."""
    return grammar.accepts(STORY_GRAMMAR, text)


def opening(story: str) -> str:
    """The first sentence of ``story``, by which stories are held out."""
    return story[: story.index(".") + 1]


def is_held_out_story(story: str) -> bool:
    """True if training never sees a story with this first sentence."""
    return is_held_out(f"story {opening(story)}")


def held_out_beginnings(seed: int) -> Iterator[str]:
    """Beginnings of held-out stories, without end: the first sentence and some words more, never a whole story."""
    rng = stream("story beginnings", seed)
    while True:
        story = tell_story(rng)
        if is_held_out_story(story):
            words = story.split(" ")
            shortest = opening(story).count(" ") + 1
            yield " ".join(words[: rng.randint(shortest, len(words) - 1)])
