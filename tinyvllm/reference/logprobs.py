"""Log-probabilities of raw logits: of chosen tokens, of the most likely ones, and ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import LogprobColumns
from tinyvllm.reference.order import most_likely
from tinyvllm.shapes import Float32, Int32

_TILE = 1 << 17  # elements of the largest temporaries


def log_softmax(logits: Float32) -> Float32:
    """``x - log(sum(exp(x)))`` of each row.

    Args:
        logits: ``[B, V]``, float32; -inf gives -inf, a row with a NaN or +inf gives NaN.
    Returns:
        ``[B, V]``, float32; exponentials in float32, their sum and the difference in float64.
    """
    maximum, log_sum = _normaliser(logits)
    with np.errstate(invalid="ignore", over="ignore"):
        return ((logits - maximum) - log_sum).astype(np.float32)


def logprob_columns(logits: Float32, token_ids: Int32, num_logprobs: int) -> LogprobColumns:
    """Of each row the log-probability and rank of one token, then the most likely tokens.

    Serves sampled tokens, and prompt tokens with the logits of the position before each.

    Args:
        logits: ``[B, V]``, float32, raw.
        token_ids: ``[B]``, int32; the tokens of column 0.
        num_logprobs: ``k``, how many of the most likely tokens; -1 or more than ``V``: all.
    Returns:
        Columns of width ``1 + k``; equal logits are ordered by lower id. Rank is 1 plus how many tokens have a
        strictly larger logit.
    """
    vocab_size = logits.shape[-1]
    k = vocab_size if num_logprobs < 0 else min(num_logprobs, vocab_size)
    ids = np.empty((len(logits), 1 + k), np.int32)
    logprobs = np.empty((len(logits), 1 + k), np.float32)
    rank = np.empty(len(logits), np.int32)
    rows_per_tile = max(1, _TILE // vocab_size)
    for start in range(0, len(logits), rows_per_tile):
        rows = slice(start, start + rows_per_tile)
        x = logits[rows]
        ids[rows, 0] = token_ids[rows]
        if k:
            ids[rows, 1:] = most_likely(x, k)
        maximum, log_sum = _normaliser(x)
        listed = np.take_along_axis(x, ids[rows], axis=-1)
        with np.errstate(invalid="ignore", over="ignore"):  # as in _normaliser
            logprobs[rows] = (listed - maximum) - log_sum
        rank[rows] = 1 + np.count_nonzero(x > listed[:, :1], axis=-1)
    return LogprobColumns(ids, logprobs, rank)


def _normaliser(logits: Float32) -> tuple[Float32, NDArray[np.float64]]:
    """The maximum, and the logarithm of the sum of exponentials below it: ``[B, 1]`` each."""
    maximum = logits.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: the row is corrupt anyway
        weights = np.exp(logits - maximum)
    return maximum, np.log(weights.astype(np.float64).sum(axis=-1, keepdims=True))
