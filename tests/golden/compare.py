"""The engine's answers beside transformers': the one comparison that the test and ``fresh.py`` share. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Golden

TOLERANCE = 1e-3
"""The project's stated bound on a log-probability against transformers in float32, and the margin of the top two
below which the greedy token is not compared. Both sides round: on these files transformers was found within 8e-5 of a
float64 loop, so that a correct engine stays far inside."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one answer of the engine compares with its golden."""

    worst: float
    """Largest difference of a log-probability among all that were compared."""
    num_steps: int
    """Greedy steps compared; the rest follow a step whose top two were too close to call."""
    complaints: tuple[str, ...]
    """What is out of tolerance, one line each; empty when all is well."""


def generate(checkpoint: Path, goldens: Sequence[Golden], **options: Any) -> list[Any]:
    """The engine's ``RequestOutput`` for the prompt of each golden, all run together, whole vocabulary reported."""
    from tinyvllm import LLM, SamplingParams

    llm = LLM(model=str(checkpoint), skip_tokenizer_init=True, device="cpu", dtype="float32", **options)
    prompts = [{"prompt_token_ids": golden.prompt.tolist()} for golden in goldens]
    params = [
        SamplingParams(temperature=0.0, max_tokens=len(golden.greedy), ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
        for golden in goldens
    ]
    return list(llm.generate(prompts, params, use_tqdm=False))


def compare(output: Any, golden: Golden) -> Comparison:
    """Hold a ``RequestOutput`` against ``golden``: every log-probability kept there, and the greedy tokens."""
    completion = output.outputs[0]
    num_prompt, num_steps = len(golden.prompt), len(golden.greedy)
    complaints = _shape_complaints(output, golden)
    if complaints:
        return Comparison(float("inf"), 0, tuple(complaints))

    # Tokens agree up to `agreed`; from there on the engine continues another text, so later rows mean nothing.
    tokens = np.asarray(completion.token_ids)
    margins = golden.top_two[:, 0] - golden.top_two[:, 1]
    differing = np.flatnonzero(tokens != golden.greedy)
    too_close = np.flatnonzero(margins < TOLERANCE)
    agreed = int(min([num_steps, *differing[:1], *too_close[:1]]))
    if agreed < num_steps and margins[agreed] >= TOLERANCE:
        complaints.append(
            f"greedy step {agreed}: token {tokens[agreed]}, expected {golden.greedy[agreed]} "
            f"by a margin of {margins[agreed]:.4f}"
        )

    # Row t of `got` predicts token t + 1. At `agreed` itself both sides still predict from the same tokens.
    num_rows = min(num_prompt + agreed, num_prompt + num_steps - 1)
    vocab_size = golden.logprobs.shape[1]
    reported = [*output.prompt_logprobs[1:], *completion.logprobs][:num_rows]
    got = np.stack([_row(mapping, vocab_size) for mapping in reported])  # [num_rows, V]

    every = np.arange(num_rows)
    following = np.concatenate([golden.prompt, golden.greedy])[1 : num_rows + 1]
    kept = golden.rows < num_rows
    steps = every[num_prompt - 1 :]
    top_two = -np.sort(-got[steps], axis=1)[:, :2]  # sorted: which of two near ties comes first cannot matter
    findings: list[tuple[str, NDArray[Any], NDArray[Any]]] = [  # what, at which rows, by how much
        ("next token", every, np.abs(got[every, following] - golden.following[:num_rows])),
        ("whole row", golden.rows[kept], np.abs(got[golden.rows[kept]] - golden.logprobs[kept]).max(axis=1)),
        ("top two", steps, np.abs(top_two - golden.top_two[: len(steps)]).max(axis=1)),
    ]
    for what, rows, error in findings:
        wrong = np.flatnonzero(~(error <= TOLERANCE))  # a NaN is wrong as well
        if wrong.size:
            complaints.append(
                f"{what}: {wrong.size} of {error.size} rows out of tolerance, first at row {rows[wrong[0]]} "
                f"by {error[wrong[0]]:.4f} (prompt of {num_prompt})"
            )
    worst = float(np.max([error.max() for _, _, error in findings]))
    return Comparison(worst, agreed, tuple(complaints))


def _shape_complaints(output: Any, golden: Golden) -> list[str]:
    """What is missing in ``output``, before any number is looked at."""
    completion = output.outputs[0]
    complaints = []
    if list(output.prompt_token_ids) != golden.prompt.tolist():
        complaints.append("prompt_token_ids are not those of the prompt")
    if len(output.prompt_logprobs) != len(golden.prompt) or output.prompt_logprobs[0] is not None:
        complaints.append("prompt_logprobs is not None followed by one mapping for each further prompt token")
    if len(completion.token_ids) != len(golden.greedy) or len(completion.logprobs) != len(golden.greedy):
        complaints.append(f"{len(completion.token_ids)} tokens generated, expected {len(golden.greedy)}")
    if completion.finish_reason != "length":
        complaints.append(f"finish_reason {completion.finish_reason!r}, expected 'length'")
    for token, mapping in zip(completion.token_ids, completion.logprobs, strict=False):
        if mapping[token].rank != 1:
            complaints.append(f"a greedy token has rank {mapping[token].rank}")
            break
    return complaints


def _row(mapping: Mapping[int, Any], vocab_size: int) -> NDArray[np.float64]:
    """``{token_id: Logprob}`` as ``[V]``; NaN where a token is not reported."""
    row = np.full(vocab_size, np.nan)
    for token, entry in mapping.items():
        row[token] = entry.logprob
    return row
