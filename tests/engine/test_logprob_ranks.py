"""Ranks of log-probabilities: what ``outputs.py`` says of them, whichever token was chosen."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvllm.engine.token_logprobs import token_logprobs
from tinyvllm.reference.logprobs import logprob_columns

LOGITS = np.array([[1.0, 3.0, 3.0, 3.0, 2.0, 2.0, -np.inf]], np.float32)
RANKS = {0: 6, 1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 6: 7}


@pytest.mark.parametrize("chosen", range(7))
@pytest.mark.parametrize("wanted", [0, 1, 2, 4, 7, -1])
def test_equally_likely_tokens_share_a_rank(chosen: int, wanted: int) -> None:
    columns = logprob_columns(LOGITS, np.array([chosen], np.int32), wanted)
    told = token_logprobs(columns, 0, wanted, None)
    assert {token_id: entry.rank for token_id, entry in told.items()} == {
        token_id: RANKS[token_id] for token_id in told
    }
    assert next(iter(told)) == chosen


def test_tokens_whose_log_probabilities_round_to_one_number_share_a_rank() -> None:
    logits = np.array([[0.0, 1e-9, 2e-9]], np.float32)
    for chosen in range(3):
        told = token_logprobs(logprob_columns(logits, np.array([chosen], np.int32), -1), 0, -1, None)
        assert len({entry.logprob for entry in told.values()}) == 1
        assert [entry.rank for entry in told.values()] == [1, 1, 1]
