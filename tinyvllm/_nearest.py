"""``did you mean``: the nearest of the words that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What people write for a word of ours that no measure of likeness would find.
SYNONYMS = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "float": "float32",
    "max_batch_size": "max_num_seqs",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "num_return_sequences": "n",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "top_logprobs": "logprobs",
    "max_length": "max_model_len",
    "model_path": "model",
}

_MAX_WORD_CHARACTERS = 100  # comparing takes time, and no word of ours is as long


def nearest(word: object, choices: Iterable[str]) -> str | None:
    """The one of ``choices`` that ``word`` was most likely meant to be; None if none is like it."""
    if not isinstance(word, str) or len(word) > _MAX_WORD_CHARACTERS:
        return None
    by_folded = {_folded(choice): choice for choice in choices}
    folded = _folded(word)
    if SYNONYMS.get(folded) in by_folded.values():
        return SYNONYMS[folded]
    matches = difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """``"; did you mean 'static'?"``, or nothing where no choice is near."""
    match = nearest(word, choices)
    return f"; did you mean {match!r}?" if match is not None else ""


def _folded(word: str) -> str:
    return word.lower().replace("-", "_")
