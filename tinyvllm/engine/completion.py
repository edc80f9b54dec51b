"""One completion of a request: it takes tokens and decides when it has ended. Knows nothing of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyvllm.batch import LogprobColumns
from tinyvllm.engine.columns import NUM_STOP_IDS
from tinyvllm.engine.completion_text import CompletionText
from tinyvllm.engine.token_logprobs import token_logprobs
from tinyvllm.outputs import FinishReason, TokenLogprobs
from tinyvllm.sequence import SequenceTokens

if TYPE_CHECKING:
    from tinyvllm.engine.request_state import RequestState


@dataclass(slots=True, eq=False)
class UnreadOutput:
    """What a completion has produced that is in no delta yet.

    Attributes:
        first: how many output tokens of the completion came before.
        token_ids: the tokens.
        texts: pieces of their text.
        logprobs: one mapping per token; None if not asked for.
    """

    first: int
    token_ids: list[int]
    texts: list[str]
    logprobs: list[TokenLogprobs] | None

    def followed_by(self, later: UnreadOutput) -> UnreadOutput:
        """Both as one."""
        logprobs = None if self.logprobs is None else [*self.logprobs, *(later.logprobs or ())]
        return UnreadOutput(self.first, [*self.token_ids, *later.token_ids], [*self.texts, *later.texts], logprobs)


class Completion:
    """One completion of a request.

    Attributes:
        request: the request.
        index: 0 to ``n - 1``.
        tokens: what the sampler reads; it may have tokens that the completion has not taken yet.
        row: in the engine's table.
        runs_ahead: whether a step may begin before the token of the step before is known.
        stop_ids: tokens that end it.
        needs_each_token: whether it takes each token when it is read back; otherwise the first and the last, and those
            between with the last.
        unread: what it has produced since its last delta. Who lets a completion of a request that streams take tokens
            or end calls :meth:`~tinyvllm.engine.outbox.Outbox.open` first, which puts a new one here after a delta.
        finish_reason, stop_reason: as in :class:`~tinyvllm.outputs.CompletionOutput`.
    """

    __slots__ = (
        "_max_output",
        "_text",
        "finish_reason",
        "index",
        "needs_each_token",
        "request",
        "row",
        "runs_ahead",
        "stop_ids",
        "stop_reason",
        "tokens",
        "unread",
    )

    def __init__(self, request: RequestState, index: int, tokens: SequenceTokens, max_output: int) -> None:
        params = tokens.params
        self.request = request
        self.index = index
        self.tokens = tokens
        self.row = -1
        self.runs_ahead = True
        self.unread = UnreadOutput(0, [], [], None if params.logprobs is None else [])
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self._max_output = max_output
        eos = () if params.ignore_eos else tokens.rules.eos_token_ids
        self.stop_ids = frozenset((*eos, *(params.stop_token_ids or ())))
        has_text = request.tokenizer is not None and params.detokenize
        self._text = CompletionText(request.request, request.tokenizer) if has_text and request.tokenizer else None
        has_stop_strings = self._text is not None and bool(params.stop)
        has_many_stops = len(self.stop_ids) > NUM_STOP_IDS
        self.needs_each_token = request.stream or has_stop_strings or has_many_stops or params.logprobs is not None

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

    @property
    def num_output(self) -> int:
        """Output tokens that were taken, those in earlier deltas included."""
        return self.unread.first + len(self.unread.token_ids)

    def next_unread(self) -> UnreadOutput:
        """An empty record of what comes after :attr:`unread`."""
        unread = self.unread
        first = unread.first + len(unread.token_ids)
        return UnreadOutput(first, [], [], None if unread.logprobs is None else [])

    def catch_up(self, num_tokens: int) -> None:
        """Take the tokens that were passed over, until there are ``num_tokens`` with the prompt."""
        unread = self.unread
        num_output = num_tokens - self.tokens.num_prompt_tokens
        num_taken = unread.first + len(unread.token_ids)
        if num_taken >= num_output:
            return
        passed_over = self.tokens.output[num_taken:num_output].tolist()
        if self._text is not None:
            for token_id in passed_over:
                self._text.add(unread.texts, token_id, can_stop=False)
        unread.token_ids += passed_over

    def add_token(self, token_id: int, num_tokens: int, now: float) -> None:
        """Take one token, and those before it that were passed over; end if it says so.

        Args:
            token_id: the token.
            num_tokens: prompt and output, with this token.
            now: seconds on the engine's clock.
        """
        if not self.needs_each_token:
            self.catch_up(num_tokens - 1)
        token_ids = self.unread.token_ids
        token_ids.append(token_id)
        num_output = self.unread.first + len(token_ids)
        if num_output == 1 and self.request.first_token_time is None:
            self.request.first_token_time = now
        params = self.tokens.params
        can_stop = num_output >= params.min_tokens
        if token_id in self.stop_ids and can_stop:
            is_eos = not params.ignore_eos and token_id in self.tokens.rules.eos_token_ids
            if self._text is not None and params.include_stop_str_in_output:
                self._text.add(self.unread.texts, token_id, can_stop=False)
            self._finish("stop", None if is_eos else token_id)
            return
        if self._text is not None:
            stopped_by = self._text.add(self.unread.texts, token_id, can_stop=can_stop)
            if stopped_by is not None:
                self._end("stop", stopped_by)
                return
        if num_output >= self._max_output:
            self._finish("length", None)

    def add_logprobs(self, columns: LogprobColumns, i: int) -> None:
        """Keep row ``i`` of a step's log-probabilities for the token that is taken next; nothing if not asked for."""
        num_logprobs = self.tokens.params.logprobs
        if self.unread.logprobs is not None and num_logprobs is not None:
            self.unread.logprobs.append(token_logprobs(columns, i, num_logprobs, self.request.tokenizer))

    def abort(self, reason: str | None = None) -> None:
        """End now, keeping what there is."""
        self._finish("abort", reason)

    def fail(self, reason: str, num_tokens: int) -> None:
        """End now, whatever has been interrupted, without making text, which may be what failed.

        Args:
            reason: becomes ``stop_reason``.
            num_tokens: prompt and output; how many are certain, if so many are written.
        """
        unread, output = self.unread, self.tokens.output
        num_certain = min(num_tokens - self.tokens.num_prompt_tokens, len(output))
        token_ids = output[unread.first : max(self.num_output, num_certain)].tolist()
        if unread.logprobs is not None:
            num_complete = min(len(token_ids), len(unread.logprobs))
            del token_ids[num_complete:], unread.logprobs[num_complete:]
        unread.token_ids = token_ids
        self._end("abort", reason)

    def _finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        if self._text is not None:
            stopped_by = self._text.end(self.unread.texts)
            if stopped_by is not None and reason == "length":
                reason, stop_reason = "stop", stopped_by
        self._end(reason, stop_reason)

    def _end(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        """Last of all: where there is a finish reason, everything else is complete."""
        self.stop_reason = stop_reason
        self.finish_reason = reason
