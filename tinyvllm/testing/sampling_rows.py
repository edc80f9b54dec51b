"""Sampling parameters of some rows, for tests and benchmarks of what chooses tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyvllm.batch import NO_LOGPROBS, SamplingRows


def rows_of(num_rows: int, **columns: Any) -> SamplingRows:
    """The sampling parameters of ``num_rows`` rows; by default drawn at temperature 1, row ``i`` at position ``i``.

    Args:
        num_rows: ``B``.
        columns: fields of ``SamplingRows``, each a scalar for all rows or ``[B]``.
    """
    defaults: dict[str, Any] = {
        "temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0,
        "repetition_penalty": 1, "seed": 0, "completion_index": 0, "position": np.arange(num_rows),
        "num_logprobs": NO_LOGPROBS, "has_rules": False,
    }  # fmt: skip
    kinds = {"top_k": np.int32, "seed": np.uint64, "has_rules": np.bool_} | dict.fromkeys(
        ("completion_index", "position", "num_logprobs"), np.int32
    )
    assert columns.keys() <= defaults.keys(), sorted(columns)
    return SamplingRows(
        **{
            name: np.broadcast_to(np.asarray(value, kinds.get(name, np.float32)), (num_rows,)).copy()
            for name, value in (defaults | columns).items()
        }
    )
