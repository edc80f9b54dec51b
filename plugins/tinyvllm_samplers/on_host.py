"""The sampler ``default`` on the host: every field of SamplingParams, by the definitions in ``tinyvllm.reference``.

A step whose rows are all greedy and plain is one argmax. Only rows with rules look at their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import ALL_LOGPROBS, NO_LOGPROBS
from tinyvllm.plugin import LogprobColumns, SampleCall, Sampled, SamplingRows
from tinyvllm.reference import penalties
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.reference.sampling import sample
from tinyvllm.sequence import SequenceTokens
from tinyvllm.shapes import Float32, Int32


class DefaultOnHost:
    """Stateless: a row's random numbers come from its seed, completion and position alone."""

    def __init__(self) -> None:
        """Nothing is kept but the row numbers."""
        self._row_numbers = np.arange(0)

    def sample(self, call: SampleCall) -> Sampled:
        """One token a row.

        A row is corrupt if no token can be chosen from it: its logits hold a NaN or +inf, or nothing but -inf is
        left once the request's own rules are applied. Its token means nothing.
        """
        raw: Float32 = np.ascontiguousarray(call.logits, np.float32)
        rows = call.rows
        logits = with_rules(raw, rows, call.tokens) if np.count_nonzero(rows.has_rules) else raw
        chosen = logits.argmax(axis=-1)  # a NaN counts as the largest
        best = logits[self._numbers(len(chosen)), chosen]
        is_sound = np.isfinite(best)
        all_sound = np.count_nonzero(is_sound) == len(chosen)
        token_ids = chosen.astype(np.int32)
        if np.count_nonzero(rows.temperature):
            is_random = (rows.temperature > 0) & is_sound
            _sample_some(token_ids, logits, rows, np.flatnonzero(is_random))
        return Sampled(
            token_ids,
            logprobs=_logprobs(raw, token_ids, rows.num_logprobs),
            is_corrupt=None if all_sound else ~is_sound,
        )

    def _numbers(self, count: int) -> NDArray[np.intp]:
        if count > len(self._row_numbers):
            self._row_numbers = np.arange(count)
        return self._row_numbers[:count]


def with_rules(logits: Float32, rows: SamplingRows, tokens: Sequence[SequenceTokens | None]) -> Float32:
    """A copy of ``[B, V]`` logits with the biases, masks and penalties of the rows that have any, in vLLM's order."""
    logits = logits.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as a corrupt row
        for row in np.flatnonzero(rows.has_rules).tolist():
            sequence = tokens[row]
            assert sequence is not None, "a row with rules has its tokens"
            # A NaN must not be masked out of sight: such a row stays as it is, and is found.
            if np.isfinite(logits[row].max()):
                _apply_rules(logits[row], sequence)
                _apply_penalties(logits[row], sequence, rows, row)
    return logits


def _apply_rules(logits: Float32, sequence: SequenceTokens) -> None:
    params, rules = sequence.params, sequence.rules
    output = sequence.output
    if params.allowed_token_ids is not None:
        penalties.keep_only(logits, params.allowed_token_ids)
    if rules.bad_words_token_ids:
        penalties.forbid_bad_words(logits, output, rules.bad_words_token_ids)
    if len(output) < params.min_tokens:
        penalties.forbid(logits, [*rules.eos_token_ids, *(params.stop_token_ids or ())])
    if params.logit_bias:
        penalties.add_bias(logits, params.logit_bias)


def _apply_penalties(logits: Float32, sequence: SequenceTokens, rows: SamplingRows, row: int) -> None:
    repetition = float(rows.repetition_penalty[row])
    frequency, presence = float(rows.frequency_penalty[row]), float(rows.presence_penalty[row])
    if repetition != 1:
        penalties.penalise_repetition(logits, sequence.all, repetition)
    if frequency or presence:
        penalties.penalise_output(logits, sequence.output, frequency, presence)


def _sample_some(token_ids: Int32, logits: Float32, rows: SamplingRows, members: NDArray[np.intp]) -> None:
    """Draw the tokens of the rows ``members``, into ``token_ids``."""
    if len(members) == 0:
        return
    token_ids[members] = sample(logits[members], rows.take(members))


def _logprobs(raw: Float32, token_ids: Int32, num_logprobs: Int32) -> LogprobColumns | None:
    """Columns as wide as the row that asked for most; rows that asked for none are not computed and hold NaN."""
    is_asking = num_logprobs != NO_LOGPROBS
    if not np.count_nonzero(is_asking):
        return None
    asking = np.flatnonzero(is_asking)
    wanted = num_logprobs[asking]
    k = ALL_LOGPROBS if (wanted == ALL_LOGPROBS).any() else int(wanted.max())
    if len(asking) == len(token_ids):
        return logprob_columns(raw, token_ids, k)
    some = logprob_columns(raw[asking], token_ids[asking], k)
    shape = (len(token_ids), some.token_ids.shape[1])
    columns = LogprobColumns(
        np.zeros(shape, np.int32), np.full(shape, np.nan, np.float32), np.zeros(shape[0], np.int32)
    )
    columns.token_ids[asking] = some.token_ids
    columns.logprobs[asking] = some.logprobs
    columns.rank[asking] = some.rank
    return columns
