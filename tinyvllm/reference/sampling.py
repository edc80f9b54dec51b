"""Choosing a token: temperature, ``min_p``, ``top_k``, ``top_p`` (in that order, vLLM's), then the Gumbel-max race.

Definitions, for one row of logits ``x`` with finite maximum, all in float32 unless said otherwise::

    z = (x - max x) / temperature        w = exp(z)
    min_p   keeps tokens with w >= min_p; the rest leave the sums that follow
    top_k   keeps the first k in the order of :mod:`.order`
    top_p   keeps, in that order, each token before which the mass (float64) is below top_p of the kept mass,
            so the token that crosses top_p stays, and the first always does
    chosen  the kept token with the largest z + g, g from :mod:`.philox`; the lowest id if two are equal

The race draws from softmax(z) over the kept tokens (Gumbel 1954; Maddison, Tarlow & Minka 2014). Everything is
computed row by row along the last axis, so a row gives the same token, bit for bit, in any company.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import SamplingRows
from tinyvllm.reference.order import most_likely
from tinyvllm.reference.philox import GUMBEL_RANGE, gumbel, gumbel_at
from tinyvllm.shapes import Float32, Int32

# Elements of the largest temporaries: they stay in the caches.
_TILE = 1 << 17
# Top-p looks at this many most likely tokens first, and at 16 times as many each time they do not hold enough mass.
_FIRST_NUCLEUS = 1024
# In vocabularies this large, tokens that cannot win are left out where fewer than one in _FEW remains.
_LARGE_VOCABULARY = 1 << 14
_FEW = 8


def sample(logits: Float32, columns: SamplingRows) -> Int32:
    """One token a row, drawn at random as the columns say.

    Args:
        logits: ``[B, V]``, float32; every row has a finite maximum and no NaN. -inf is never chosen.
        columns: ``B`` rows, of temperature above 0.
    Returns:
        ``[B]``, int32.
    """
    chosen = np.empty(len(logits), np.int32)
    vocab_size = logits.shape[-1]
    is_cut = ((columns.top_k > 0) & (columns.top_k < vocab_size)) | (columns.top_p < 1)
    rows_per_tile = max(1, _TILE // vocab_size)
    for choose, members in ((_choose_uncut, np.flatnonzero(~is_cut)), (_choose_cut, np.flatnonzero(is_cut))):
        for start in range(0, len(members), rows_per_tile):
            rows = members[start : start + rows_per_tile]
            some = columns.take(rows)
            chosen[rows] = choose(_without_unlikely(scaled(logits[rows], some.temperature), some.min_p), some)
    return chosen


def scaled(logits: Float32, temperature: Float32) -> Float32:
    """``z``: ``[B, V]``, 0 at the most likely token of each row and negative elsewhere, for ``[B]`` temperatures.

    Subtracting first keeps any temperature above 0 from overflowing to anything but -inf.
    """
    with np.errstate(over="ignore"):
        z: Float32 = logits - logits.max(axis=-1, keepdims=True)
        z /= temperature[:, None]
    return z


def _without_unlikely(z: Float32, min_p: Float32) -> Float32:
    """``z`` with -inf where ``min_p`` cuts."""
    if min_p.any():
        z[np.exp(z) < min_p[:, None]] = -np.inf
    return z


def _choose_uncut(z: Float32, columns: SamplingRows) -> Int32:
    """The race over the whole vocabulary."""
    if z.shape[-1] < _LARGE_VOCABULARY:
        return _race(z, None, columns)
    chosen = np.empty(len(z), np.int32)
    cutoff = GUMBEL_RANGE[0] - GUMBEL_RANGE[1]  # below it even the luckiest draw loses to the unluckiest at z = 0
    for row in range(len(z)):
        one = slice(row, row + 1)
        candidates = np.flatnonzero(z[row] > cutoff).astype(np.int32)[None]
        if candidates.size * _FEW > z.shape[-1]:
            chosen[one] = _race(z[one], None, columns.take(one))
        else:
            chosen[one] = _race(z[one, candidates[0]], candidates, columns.take(one))
    return chosen


def _choose_cut(z: Float32, columns: SamplingRows) -> Int32:
    """The race over what ``top_k`` and ``top_p`` keep."""
    chosen = np.empty(len(z), np.int32)
    vocab_size = z.shape[-1]
    limit = np.where(columns.top_k > 0, np.minimum(columns.top_k, vocab_size), vocab_size)
    # The mass that top_p is a part of: of the k first, which are summed where they are sorted, or of the whole row.
    total = np.full(len(z), np.nan)
    is_whole = limit == vocab_size
    total[is_whole] = np.exp(z[is_whole]).astype(np.float64).sum(axis=-1)
    # Rows whose number of tokens is known go together; the others look at more and more.
    pending = np.arange(len(z))
    count = int(limit[~is_whole].max(initial=0))
    if is_whole.any():
        count = max(count, min(_FIRST_NUCLEUS, vocab_size))
    while len(pending):
        token_ids = most_likely(z[pending], count)
        ordered = np.take_along_axis(z[pending], token_ids, axis=-1)
        keep, is_settled = _nucleus(ordered, limit[pending], columns.top_p[pending], total[pending])
        rows = pending[is_settled]
        if len(rows):
            widest = int(keep[is_settled].sum(axis=-1).max())  # what is kept comes first
            kept = np.where(keep[is_settled, :widest], ordered[is_settled, :widest], np.float32(-np.inf))
            chosen[rows] = _race(kept, token_ids[is_settled, :widest], columns.take(rows))
        pending = pending[~is_settled]
        count = min(count * 16, vocab_size)
    return chosen


def _nucleus(
    ordered: Float32, limit: NDArray[np.integer], top_p: Float32, total: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the first ``count`` tokens are kept, and in which rows that is all of them.

    Args:
        ordered: ``[B, count]``, ``z`` of the most likely tokens, in order.
        limit: ``[B]``, ``top_k`` or ``V``.
        top_p: ``[B]``.
        total: ``[B]``, the mass of the row; NaN: of its ``limit`` first tokens.
    Returns:
        ``[B, count]`` and ``[B]``.
    """
    count = ordered.shape[-1]
    is_within = np.arange(count) < limit[:, None]
    mass = np.cumsum(np.exp(ordered), axis=-1, dtype=np.float64)  # in sequence: a prefix does not depend on count
    before = np.concatenate([np.zeros((len(mass), 1)), mass[:, :-1]], axis=-1)
    of_limit = np.take_along_axis(mass, np.minimum(limit, count)[:, None] - 1, axis=-1)[:, 0]
    goal = top_p.astype(np.float64) * np.where(np.isnan(total), of_limit, total)
    keep = (before < goal[:, None]) | (top_p >= 1)[:, None]
    keep[:, 0] = True
    keep &= is_within
    is_settled = (limit <= count) | ((top_p < 1) & (mass[:, -1] >= goal))
    return keep, is_settled


def _race(z: Float32, token_ids: Int32 | None, columns: SamplingRows) -> Int32:
    """The token with the largest ``z + g`` of each row; ``token_ids``: what the entries are, None for 0 to V - 1."""
    stream = (columns.seed, columns.completion_index, columns.position)
    if token_ids is None:
        score = gumbel(*stream, z.shape[-1])
        score += z
        chosen: Int32 = score.argmax(axis=-1).astype(np.int32)
        return chosen
    score = gumbel_at(*stream, token_ids)
    score += z
    # Tokens stand in any order here, so that of equal scores the lowest id must be looked for.
    is_best = score == score.max(axis=-1, keepdims=True)
    lowest: Int32 = np.where(is_best, token_ids, np.iinfo(np.int32).max).min(axis=-1)
    return lowest
