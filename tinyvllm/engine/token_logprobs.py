"""Log-probabilities as a caller reads them: mappings of token ids, made from the columns of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyvllm.batch import ALL_LOGPROBS, LogprobColumns
from tinyvllm.outputs import Logprob, TokenLogprobs

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer


def token_logprobs(columns: LogprobColumns, i: int, num_logprobs: int, tokenizer: Tokenizer | None) -> TokenLogprobs:
    """Row ``i`` as a mapping: the chosen token, then the ``num_logprobs`` most likely ones (-1: all)."""
    width = columns.token_ids.shape[1] if num_logprobs == ALL_LOGPROBS else 1 + num_logprobs
    token_ids = columns.token_ids[i, :width].tolist()
    logprobs = columns.logprobs[i, :width].tolist()
    ranks = [int(columns.rank[i]), *_shared_ranks(logprobs[1:])]
    if logprobs[0] in logprobs[1:]:
        ranks[0] = ranks[logprobs.index(logprobs[0], 1)]
    by_token: dict[int, Logprob] = {}
    for token_id, logprob, rank in zip(token_ids, logprobs, ranks, strict=True):
        if token_id not in by_token:  # the chosen token keeps its own rank
            text = None if tokenizer is None else tokenizer.decode_single(token_id)
            by_token[token_id] = Logprob(logprob, rank, text)
    return by_token


def _shared_ranks(logprobs: list[float]) -> list[int]:
    """Ranks of the most likely tokens, given in order: equal ones share the rank of the first of them."""
    ranks: list[int] = []
    for place, logprob in enumerate(logprobs):
        is_equal = place > 0 and logprob == logprobs[place - 1]
        ranks.append(ranks[-1] if is_equal else place + 1)
    return ranks
