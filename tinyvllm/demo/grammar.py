"""A grammar of sentences with memory, and the two things to do with it: tell a text and check one.

A grammar maps a state to its lines; a line is a sentence and the state after it. In a sentence, ``{+hero:name}``
introduces a hero, a name that nobody in the text has yet, and ``{hero}`` is that hero again.
So a text is right only if whoever wrote it remembers who is who. Knows nothing about any particular story.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

END = "end"
"""The state in which a text is complete."""

_SLOT = re.compile(r"\{(\+?)(\w+)(?::(\w+))?\}")


class GrammarError(ValueError):
    """A text that the grammar does not produce; the message says where it leaves the grammar."""


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence, the state it leads to, and how often it is taken next to its alternatives."""

    sentence: str
    next_state: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Grammar:
    """What may be said in each state, and the words that each kind of slot may hold."""

    start: str
    lines: Mapping[str, Sequence[Line]]
    words: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Memory:
    """What a text has said so far: each slot's word now, and all words used, by kind."""

    slots: Mapping[str, str]
    used: frozenset[tuple[str, str]]

    def remember(self, slot: str, kind: str, word: str) -> "Memory":
        """A memory in which ``slot`` holds ``word``."""
        return Memory({**self.slots, slot: word}, self.used | {(kind, word)})


NOTHING = Memory({}, frozenset())
"""The memory before the first sentence."""


def tell(grammar: Grammar, rng: random.Random) -> str:
    """A random text of ``grammar``: its sentences, joined by single spaces."""
    while True:
        state, memory, sentences = grammar.start, NOTHING, list[str]()
        while state != END:
            lines = [line for line in grammar.lines[state] if _can_fill(grammar, line, memory)]
            if not lines:
                break  # so long a text that no new words are left: begin again
            line = rng.choices(lines, [line.weight for line in lines])[0]
            sentence, memory = _fill(grammar, line, memory, rng)
            sentences.append(sentence)
            state = line.next_state
        else:
            return " ".join(sentences)


def parse(grammar: Grammar, text: str) -> Memory:
    """What ``text`` says: its slots after the last sentence.

    Raises:
        GrammarError: ``text`` is not a whole text of ``grammar``.
    """
    # Depth first over (state, position, memory): two lines may begin alike.
    pending = [(grammar.start, 0, NOTHING)]
    furthest = 0
    while pending:
        state, position, memory = pending.pop()
        furthest = max(furthest, position)
        if state == END:
            if position == len(text):
                return memory
            continue
        if position > 0:
            if not text.startswith(" ", position):
                continue
            position += 1
        for line in grammar.lines[state]:
            for end, after in _match(grammar, line, memory, text, position):
                pending.append((line.next_state, end, after))
    raise GrammarError(f"no line of the grammar goes on at character {furthest}: {text[furthest : furthest + 40]!r}")


def accepts(grammar: Grammar, text: str) -> bool:
    """True if ``text`` is a whole text of ``grammar``."""
    try:
        parse(grammar, text)
    except GrammarError:
        return False
    return True


def _new_words(grammar: Grammar, kind: str, memory: Memory) -> list[str]:
    return [word for word in grammar.words[kind] if (kind, word) not in memory.used]


def _can_fill(grammar: Grammar, line: Line, memory: Memory) -> bool:
    kinds = [kind for new, _, kind in _SLOT.findall(line.sentence) if new]
    return all(len(_new_words(grammar, kind, memory)) >= kinds.count(kind) for kind in kinds)


def _fill(grammar: Grammar, line: Line, memory: Memory, rng: random.Random) -> tuple[str, Memory]:
    parts: list[str] = []
    position = 0
    for slot in _SLOT.finditer(line.sentence):
        new, name, kind = slot.groups()
        if new:
            memory = memory.remember(name, kind, rng.choice(_new_words(grammar, kind, memory)))
        parts += [line.sentence[position : slot.start()], memory.slots[name]]
        position = slot.end()
    return "".join(parts) + line.sentence[position:], memory


def _match(grammar: Grammar, line: Line, memory: Memory, text: str, start: int) -> list[tuple[int, Memory]]:
    """Every way in which ``line`` can be read at ``start``: where it ends, and the memory then."""
    readings = [(start, memory)]
    position = 0
    for slot in _SLOT.finditer(line.sentence):
        readings = _match_literal(readings, line.sentence[position : slot.start()], text)
        new, name, kind = slot.groups()
        following = []
        for at, known in readings:
            words = _new_words(grammar, kind, known) if new else [known.slots[name]]
            for word in words:
                if text.startswith(word, at):
                    following.append((at + len(word), known.remember(name, kind, word) if new else known))
        readings = following
        position = slot.end()
    return _match_literal(readings, line.sentence[position:], text)


def _match_literal(readings: list[tuple[int, Memory]], literal: str, text: str) -> list[tuple[int, Memory]]:
    return [(at + len(literal), memory) for at, memory in readings if text.startswith(literal, at)]
