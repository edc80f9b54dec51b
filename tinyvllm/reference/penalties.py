"""What may change single logits of one sequence before sampling: penalties, biases and masks. Each works in place.

vLLM applies them in this order: allowed tokens, bad words, minimum length, biases, penalties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tinyvllm.shapes import Float32, Int32


def keep_only(logits: Float32, allowed_token_ids: Sequence[int]) -> None:
    """-inf everywhere but at ``allowed_token_ids``; ``logits`` is ``[V]``."""
    allowed = list(allowed_token_ids)
    kept = logits[allowed]
    logits.fill(-np.inf)
    logits[allowed] = kept


def forbid_bad_words(logits: Float32, output: Int32, bad_words_token_ids: Sequence[Sequence[int]]) -> None:
    """-inf at the last token of each word whose other tokens were just generated.

    Args:
        logits: ``[V]``.
        output: generated tokens; the prompt is not looked at, as in vLLM: a word is forbidden, not its completion.
        bad_words_token_ids: at least one token a word.
    """
    longest = max((len(word) for word in bad_words_token_ids), default=1)
    recent = tuple(output[max(0, len(output) - longest + 1) :].tolist())
    for word in bad_words_token_ids:
        prefix = tuple(word[:-1])
        if recent[max(0, len(recent) - len(prefix)) :] == prefix:
            logits[word[-1]] = -np.inf


def forbid(logits: Float32, token_ids: Sequence[int]) -> None:
    """-inf at ``token_ids``, such as the stop tokens before ``min_tokens``; ``logits`` is ``[V]``."""
    logits[list(token_ids)] = -np.inf


def add_bias(logits: Float32, logit_bias: Mapping[int, float]) -> None:
    """Add to single logits, in float32; ``logits`` is ``[V]``."""
    logits[list(logit_bias)] += np.fromiter(logit_bias.values(), np.float32, len(logit_bias))


def penalise_repetition(logits: Float32, tokens: Int32, penalty: float) -> None:
    """Divide positive, multiply other logits of ``tokens`` (prompt and output) by ``penalty`` (Keskar et al. 2019).

    Args:
        logits: ``[V]``.
        tokens: ``[n]``; however often a token occurs, it counts once.
        penalty: above 0; below 1 encourages.
    """
    x = logits[tokens]
    factor = np.float32(penalty)
    logits[tokens] = np.where(x > 0, x / factor, x * factor)  # repeats write the same value


def penalise_output(logits: Float32, output: Int32, frequency_penalty: float, presence_penalty: float) -> None:
    """Subtract ``frequency_penalty * count`` and then ``presence_penalty`` from logits of generated tokens.

    Args:
        logits: ``[V]``.
        output: ``[n]``, generated tokens only.
        frequency_penalty, presence_penalty: the OpenAI definitions.
    """
    token_ids, counts = np.unique(output, return_counts=True)
    x = logits[token_ids]
    x -= np.float32(frequency_penalty) * counts.astype(np.float32)
    x -= np.float32(presence_penalty)
    logits[token_ids] = x
