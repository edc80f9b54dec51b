"""The most likely token."""

from __future__ import annotations

import numpy as np

from tinyvllm.shapes import Float32, Int32


def argmax(logits: Float32) -> Int32:
    """The lowest index of the largest of each row; -1 where that is NaN or infinite, so where none can be chosen.

    Args:
        logits: ``[T, V]``, float32.
    Returns:
        ``[T]``, int32.
    """
    token_ids = logits.argmax(axis=1)
    largest = logits.max(axis=1)
    return np.where(np.isfinite(largest), token_ids, -1).astype(np.int32)
