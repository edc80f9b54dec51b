"""Token ids to rows of the embedding table."""

from __future__ import annotations

import numpy as np

from tinyvllm.shapes import Float32, Int32


def embedding(token_ids: Int32, table: Float32) -> Float32:
    """Row ``token_ids[t]`` of ``table`` for every token.

    Args:
        token_ids: ``[T]``, int32, each in ``[0, V)``.
        table: ``[V, E]``.
    Returns:
        ``[T, E]``, dtype of ``table``; a copy.
    """
    return np.take(table, token_ids, axis=0)
