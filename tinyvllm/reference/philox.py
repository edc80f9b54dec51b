"""The random numbers of sampling: a pure function of (seed, completion, position, token id), the same on every device.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a counter of
four 32-bit words, under a key of two, to four random words. Nothing is drawn in sequence, so nothing is saved when a
sequence is preempted, and a token's number does not depend on which other tokens were looked at. For token ``v``::

    key     = (seed mod 2**32, seed div 2**32)
    counter = (v div 4, position, completion_index, 0)
    x       = word v mod 4 of philox4x32(counter, key)

    u = min(float32(x) * 2**-32 + 2**-33, 1 - 2**-24)     uniform, in [2**-33, 1 - 2**-24]
    e = -log1p(-u)                                        exponential, in [1.16e-10, 16.64]
    g = -log(e)                                           Gumbel, in [-2.81, 22.88]

all in float32, rounding to nearest; ``float32(x)`` rounds too. ``u`` has the same bits everywhere; ``e`` and ``g``
differ between devices as their logarithms do, by a few units in the last place.

Why not a uniform of 23 or 24 bits: sampling takes the smallest ``e / p`` (or largest ``log p + g``), so the small
values of ``e`` must be fine. With 24 bits a token of probability 1e-8 would be drawn some thirty times too seldom;
here ``u`` is fine down to 2**-32. (Adding one half to 24 bits also rounds to 1 in float32, whose logarithm is 0.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyvllm.shapes import Float32, Int32

UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]

ROUNDS = 10
# Smallest and largest g, one unit wider: a token this far below another can never be chosen before it.
GUMBEL_RANGE = (-2.82, 22.89)

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_ROUND_STEPS = (np.arange(ROUNDS, dtype=np.uint64)[:, None] * _KEY_STEPS).astype(np.uint32)  # [10, 2], mod 2**32
# Counters of one pass through the rounds: 4 arrays of 8 bytes each stay in a second-level cache.
_TILE = 8192
_ONE_BELOW = np.float32(1 - 2.0**-24)


def gumbel(seed: UInt64, completion_index: Int32, position: Int32, vocab_size: int) -> Float32:
    """``g`` of every token, for ``B`` streams.

    Args:
        seed, completion_index, position: ``[B]``.
        vocab_size: ``V``.
    Returns:
        ``[B, V]``, float32.
    """
    return _gumbel(uniform(seed, completion_index, position, vocab_size))


def gumbel_at(seed: UInt64, completion_index: Int32, position: Int32, token_ids: Int32) -> Float32:
    """``g`` of some tokens only; bit-equal to the same entries of :func:`gumbel`.

    Args:
        seed, completion_index, position: ``[B]``.
        token_ids: ``[B, k]``.
    Returns:
        ``[B, k]``, float32.
    """
    return _gumbel(_uniform(random_words_at(seed, completion_index, position, token_ids)))


def uniform(seed: UInt64, completion_index: Int32, position: Int32, vocab_size: int) -> Float32:
    """``u`` of every token, for ``B`` streams: ``[B, V]``, float32, never 0 or 1."""
    return _uniform(random_words(seed, completion_index, position, vocab_size))


def random_words(seed: UInt64, completion_index: Int32, position: Int32, vocab_size: int) -> UInt32:
    """``x`` of every token, for ``B`` streams: ``[B, V]``."""
    num_counters = -(-vocab_size // 4)
    words = np.empty((len(seed), num_counters, 4), np.uint32)
    rows_per_tile = max(1, _TILE // num_counters)
    for row in range(0, len(seed), rows_per_tile):
        rows = slice(row, row + rows_per_tile)
        for start in range(0, num_counters, _TILE):
            blocks = np.arange(start, min(start + _TILE, num_counters), dtype=np.uint32)
            drawn = philox4x32(*_inputs(seed[rows], completion_index[rows], position[rows], blocks))
            words[rows, start : start + _TILE] = np.moveaxis(drawn, 0, -1)
    return words.reshape(len(seed), -1)[:, :vocab_size]


def random_words_at(seed: UInt64, completion_index: Int32, position: Int32, token_ids: Int32) -> UInt32:
    """``x`` of some tokens, ``[B, k]`` for ``token_ids`` of that shape."""
    words = np.empty(token_ids.shape, np.uint32)
    rows_per_tile = max(1, _TILE // max(1, token_ids.shape[1]))
    for row in range(0, len(seed), rows_per_tile):
        rows = slice(row, row + rows_per_tile)
        for start in range(0, token_ids.shape[1], _TILE):
            ids = token_ids[rows, start : start + _TILE]
            drawn = philox4x32(*_inputs(seed[rows], completion_index[rows], position[rows], ids >> 2))
            words[rows, start : start + _TILE] = np.take_along_axis(drawn, (ids & 3)[None], axis=0)[0]
    return words


def philox4x32(counter: UInt32, key: UInt32) -> UInt32:
    """Ten rounds of Philox4x32 on every column.

    Args:
        counter: ``[4, B, n]``.
        key: ``[2, B]``.
    Returns:
        ``[4, B, n]``.
    """
    multipliers = _MULTIPLIERS[:, None, None]
    round_keys = (_ROUND_STEPS[:, :, None] + key)[..., None]  # [10, 2, B, 1]
    even, odd = counter[0::2], counter[1::2]  # [2, B, n] each: words (0, 2) and (1, 3)
    for round_key in round_keys:
        # The two 64-bit products, seen as pairs of words; the lower word comes first on a little-endian machine.
        product = np.multiply(even, multipliers, dtype=np.uint64).view("<u4")[::-1]  # [2, B, 2n], words swapped
        even = product[..., 1::2] ^ odd
        even ^= round_key
        odd = product[..., 0::2]
    return np.stack([even[0], odd[0], even[1], odd[1]])


def _inputs(
    seed: UInt64, completion_index: Int32, position: Int32, blocks: NDArray[np.integer]
) -> tuple[UInt32, UInt32]:
    counter = np.zeros((4, len(seed), blocks.shape[-1]), np.uint32)
    counter[0] = blocks
    counter[1] = position[:, None]
    counter[2] = completion_index[:, None]
    key = np.stack([seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32)]).astype(np.uint32)
    return counter, key


def _uniform(words: UInt32) -> Float32:
    u = words.astype(np.float32)
    u *= np.float32(2.0**-32)
    u += np.float32(2.0**-33)
    return np.minimum(u, _ONE_BELOW, out=u)


def _gumbel(u: Float32) -> Float32:
    exponential = np.log1p(np.negative(u, out=u), out=u)
    np.log(np.negative(exponential, out=u), out=u)
    return np.negative(u, out=u)
