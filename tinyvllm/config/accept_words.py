"""vLLM's flat engine arguments in a tree of values: moved to their sections, or dropped where they ask for nothing."""

from __future__ import annotations

from typing import Any

from tinyvllm.config.other_words import DTYPES, LATER, MOVED, NEVER_VALUES, RENAMED
from tinyvllm.config.problems import Problem
from tinyvllm.config.tree import KeyPath, Tree, dotted

# Keys of ours that may be null in vLLM, where null means the default.
_NULLABLE = ("dtype", "enforce_eager", "load_format", "seed", "skip_tokenizer_init")
_WORDS = (*LATER, *NEVER_VALUES, *RENAMED, *_NULLABLE)


def home_of(path: KeyPath) -> KeyPath:
    """Where the value of ``path`` belongs: ``max_num_seqs`` to ``scheduler.max_num_seqs``; others stay."""
    return MOVED.get(path[0], path) if len(path) == 1 and isinstance(path[0], str) else path


def move_words(tree: Tree) -> None:
    """Move flat words to their sections. A word that is given in both places is a problem."""
    for word, home in MOVED.items():
        if word not in tree.data:
            continue
        value, place = tree.data.pop(word), tree.place((word,))
        tree.forget((word,))
        if value is None:
            continue
        section = tree.data.get(home[0])
        if isinstance(section, dict) and home[1] in section:
            message = f"{word} and {dotted(home)} are both given; keep one"
            tree.problems.append(Problem(place, message))
        else:
            tree.put(home, value, place)


def drop_words(tree: Tree) -> None:
    """Drop words whose values ask for nothing, and write vLLM's names of dtypes as ours."""
    for word in _WORDS:
        if word in tree.data and _asks_nothing(word, tree.data[word]):
            del tree.data[word]
            tree.forget((word,))
    dtype = tree.data.get("dtype")
    if isinstance(dtype, str):
        tree.data["dtype"] = DTYPES.get(dtype, dtype)


def _asks_nothing(word: str, value: Any) -> bool:
    """Whether vLLM with ``word`` set to ``value`` does what it does without it."""
    accepted = LATER.get(word, NEVER_VALUES.get(word, ()))
    return value is None or any(
        isinstance(value, bool) == isinstance(each, bool) and value == each for each in accepted
    )
