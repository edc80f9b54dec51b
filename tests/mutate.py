"""Seeded mutants of files that people write: of JSON-like trees (``config.json``) and of text (YAML).

::

    for mutant in tree_mutants(CONFIG, seed=1, count=num_mutants):
        (folder / "config.json").write_text(to_json(mutant.value))
        ...  # an error of tinyvllm's tree, or right behaviour; ``str(mutant)`` says what was done

Mutant ``i`` of a seed is always the same, whatever ``count`` is: ``mutant_of_tree(CONFIG, seed, i)`` makes it again.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CONTROL_CHARACTERS = "a\x1b[31mred\x1b[0m\x07\x00\x9b\u202e\u2028b"
LONE_SURROGATE = "\ud800"

_VALUES: dict[str, list[Any]] = {
    "null": [None],
    "zero": [0, 0.0, -0.0],
    "negative": [-1, -2, -(2**31), -(2**63), -0.5],
    "bool": [True, False],
    "string": ["", " ", "x", "0", "1", "None", "null", "true", "NaN", "1e400", "auto", "../x", "~", "/dev/null"],
    "list": [[], [0], [None], ["x"], [[]], [1, 2, 3], [-1]],
    "nested": [{}, {"x": {"y": [1]}}, {"": 0}, {"name": None}, {"type": "linear"}],
    "huge": [2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64, 10**18, 10**400, 1e308],
    "small": [1, 2, 3, 0.5, 1.0, 1.5, 1e-300],
    "not finite": [float("nan"), float("inf"), float("-inf")],
    "long string": ["x" * 5_000, "\n" * 1_000],
    "control characters": [CONTROL_CHARACTERS, "./a\x00.py"],
    "lone surrogate": [LONE_SURROGATE, f"a{LONE_SURROGATE}b"],
}
_DEEP = 200  # below Python's limit on recursion, above what a configuration may nest

_FRAGMENTS = [
    *("\t", "\r", "\0", "\x1b[2J", "\x85", "\u2028", "\ufeff", "\ufffe", "'", '"', ": ", "- ", "# ", "\n", "\n  ", " "),
    *("&a ", "*a", "&a [*a]", "<<: *a", "? ", "| ", ">\n", "---\n", "...\n", "%YAML 9.9\n", "@", "`", "!", "!!"),
    *(
        "!!python/object/apply:os.system [x] ",
        "!!binary x",
        "!!set {a}",
        "!!float x",
        "!!int 0x",
        "!!null x",
        "!!bool x",
    ),
    *("0x" + "f" * 5_000, "9" * 5_000, "-" + "9" * 400, "1e999", "1e-999", ".nan", ".inf", "0o9", "012", "10:30"),
    *("[" * _DEEP, "{a: " * _DEEP, "[" * 40 + "]" * 40, "x" * 5_000, "null", "~", "on", "true", "-1", "0", "[]", "{}"),
    *('"\\ud800"', '"\\0"', '"\\x1b[31m"', '"\\u202e"', "name", "model", "demo"),
]


@dataclass(frozen=True, slots=True)
class Mutant:
    """What was made, and how: ``str(mutant)`` makes it again by seed and number."""

    seed: int
    index: int
    done: str
    value: Any

    def __str__(self) -> str:
        return f"mutant {self.index} of seed {self.seed}: {self.done}"[:300]


class _SameKeyAgain(str):
    """A key that a dict keeps beside an equal one, so that JSON text has it twice."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def tree_mutants(tree: Any, seed: int, count: int) -> Iterator[Mutant]:
    """``count`` mutants of nested dicts and lists, each with one to three places changed; ``tree`` is left alone."""
    for index in range(count):
        yield mutant_of_tree(tree, seed, index)


def mutant_of_tree(tree: Any, seed: int, index: int) -> Mutant:
    """Mutant ``index`` of ``seed``: keys dropped, renamed or doubled, values of other types, sizes and depths."""
    rng = random.Random(f"tree {seed} {index}")
    value, done = copy.deepcopy(tree), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        done.append(_mutate_once(value, rng))
    return Mutant(seed, index, ", ".join(done), value)


def text_mutants(text: str, seed: int, count: int) -> Iterator[Mutant]:
    """``count`` mutants of a text, as bytes; most are UTF-8."""
    for index in range(count):
        yield mutant_of_text(text, seed, index)


def mutant_of_text(text: str, seed: int, index: int) -> Mutant:
    """Mutant ``index`` of ``seed``: pieces cut, doubled or replaced, lines moved or indented, hostile YAML put in."""
    rng = random.Random(f"text {seed} {index}")
    done = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        text, what = rng.choice(_TEXT_MUTATIONS)(text, rng)
        done.append(what)
    content = text.encode("utf-8", "surrogatepass")
    if content and rng.random() < 0.05:
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        done.append(f"byte {at} replaced")
    return Mutant(seed, index, ", ".join(done), content)


def to_json(tree: Any) -> str:
    """``tree`` as JSON text, doubled keys included; characters beyond ASCII are escaped, lone surrogates too."""
    return json.dumps(tree, indent=1)


def without_doubled_keys(tree: Any) -> Any:
    """``tree`` as a reader sees it that keeps the last of doubled keys."""
    return json.loads(to_json(tree))


def _mutate_once(tree: Any, rng: random.Random) -> str:
    """Change one place of ``tree``; what was done."""
    parent, key, path = rng.choice(_places(tree))
    kind = rng.choice(["drop", "rename", "double", "deep", "text", *_VALUES, *_VALUES])
    if kind == "drop":
        del parent[key]
        return f"{path} dropped"
    if kind == "rename" and isinstance(parent, dict):
        new = rng.choice(
            [f"{key}x", str(key)[:-1], str(key).upper(), CONTROL_CHARACTERS, LONE_SURROGATE, "", "k" * 999]
        )
        parent[new] = parent.pop(key)
        return f"{path} renamed to {new[:40]!r}"
    if kind == "double" and isinstance(parent, dict):
        parent[_SameKeyAgain(key)] = rng.choice([parent[key], None, 0, "x"])
        return f"{path} given twice"
    if kind == "deep":
        deep: Any = 1
        for _ in range(_DEEP):
            deep = {"a": deep} if rng.random() < 0.5 else [deep]
        parent[key] = deep
        return f"{path} nested {_DEEP} deep"
    if kind in _VALUES:
        parent[key] = copy.deepcopy(rng.choice(_VALUES[kind]))
    elif isinstance(parent[key], str):
        parent[key] = mutant_of_text(parent[key], rng.getrandbits(32), 0).value.decode("utf-8", "replace")
    else:
        parent[key] = str(parent[key])
    return f"{path} = {parent[key]!r:.60}"


def _places(tree: Any, path: str = "") -> list[tuple[Any, Any, str]]:
    """Every ``(dict or list, key, path)`` of ``tree``; an added key and item too, so that it is never empty."""
    if isinstance(tree, dict):
        tree_items: list[tuple[Any, Any]] = list(tree.items())
    elif isinstance(tree, list):
        tree_items = list(enumerate(tree))
    else:
        return []
    found = [(tree, key, f"{path}.{key}"[:80]) for key, _ in tree_items]
    for key, value in tree_items:
        found += _places(value, f"{path}.{key}")
    if not found and not path:
        tree.update({"x": 1}) if isinstance(tree, dict) else tree.append(1)
        return _places(tree)
    return found


def _cut(text: str, rng: random.Random) -> tuple[str, str]:
    start, stop = _span(text, rng)
    return text[:start] + text[stop:], f"{start}:{stop} cut"


def _double(text: str, rng: random.Random) -> tuple[str, str]:
    start, stop = _span(text, rng)
    times = rng.choice([1, 1, 2, 50])
    return text[:stop] + text[start:stop] * times + text[stop:], f"{start}:{stop} {times} times more"


def _put_in(text: str, rng: random.Random) -> tuple[str, str]:
    at, fragment = rng.randint(0, len(text)), rng.choice(_FRAGMENTS)
    return text[:at] + fragment + text[at:], f"{fragment[:20]!r} put in at {at}"


def _replace_word(text: str, rng: random.Random) -> tuple[str, str]:
    """Replace what stands between a separator and the end of its line: mostly a value."""
    ends = [i for i, character in enumerate(text) if character in ":,[{-"]
    if not ends:
        return _put_in(text, rng)
    start = rng.choice(ends) + 1
    stop = min((i for mark in ",]}\n" if (i := text.find(mark, start)) >= 0), default=len(text))
    fragment = rng.choice(_FRAGMENTS)
    return f"{text[:start]} {fragment}{text[stop:]}", f"{start}:{stop} replaced by {fragment[:20]!r}"


def _line(text: str, rng: random.Random) -> tuple[str, str]:
    lines = text.split("\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.choice(["double", "swap", "indent", "outdent", "drop", "truncate"])
    if what == "double":
        lines.insert(j, lines[i])
    elif what == "swap":
        lines[i], lines[j] = lines[j], lines[i]
    elif what == "indent":
        lines[i] = rng.choice([" ", "  ", "\t", "- "]) + lines[i]
    elif what == "outdent":
        lines[i] = lines[i].lstrip()
    elif what == "drop":
        del lines[i]
    else:
        del lines[i + 1 :]
    return "\n".join(lines), f"line {i + 1}: {what}"


def _span(text: str, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(text))
    return start, min(len(text), start + rng.choice([1, 2, 5, 20, 200]))


_TEXT_MUTATIONS = [_cut, _double, _put_in, _put_in, _replace_word, _replace_word, _line]
