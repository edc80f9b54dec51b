"""A request while it is served: its completions, their text and log-probabilities. Knows nothing of rows or blocks
but the number of its own row.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tinyvllm.batch import ALL_LOGPROBS, Int32, LogprobColumns
from tinyvllm.errors import TinyvllmError
from tinyvllm.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput, TokenLogprobs
from tinyvllm.request import Request
from tinyvllm.sequence import SequenceTokens

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer


class CompletionText:
    """Ids in, text out: never half a character, never a stop string that may yet be whole."""

    __slots__ = ("_detokenizer", "_stop", "text")

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        from tinyvllm.text.detokenizer import IncrementalDetokenizer
        from tinyvllm.text.stop import StopChecker

        params = request.params
        self.text = ""
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            request.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        self._stop = StopChecker(params.stop or (), include_stop_str_in_output=params.include_stop_str_in_output)

    def add(self, token_id: int, *, can_stop: bool) -> str | None:
        """Take one token; the stop string that it completed, if any."""
        return self._show(self._detokenizer.add(token_id), can_stop=can_stop)

    def end(self) -> str | None:
        """No more tokens: show what was held back; the stop string that this completed, if any."""
        stopped_by = self._show(self._detokenizer.flush(), can_stop=True)
        self.text += self._stop.flush()
        return stopped_by

    def _show(self, new: str, *, can_stop: bool) -> str | None:
        shown, stopped_by = self._stop.push(new, can_stop=can_stop)
        self.text += shown
        return stopped_by


class Completion:
    """One completion of a request. The engine feeds it tokens; it decides when it has ended.

    Attributes:
        request: whose it is.
        index: 0 to ``n - 1``.
        tokens: what the sampler reads; it may run ahead of what was read back.
        row: in the engine's table.
        runs_ahead: whether a step may begin before the token of the step before is known.
        stop_ids: tokens that end it.
        finish_reason, stop_reason: as in :class:`~tinyvllm.outputs.CompletionOutput`.
    """

    __slots__ = (
        "_cumulative_logprob",
        "_logprobs",
        "_most_output",
        "_num_output",
        "_text",
        "finish_reason",
        "index",
        "request",
        "row",
        "runs_ahead",
        "stop_ids",
        "stop_reason",
        "tokens",
    )

    def __init__(self, request: RequestState, index: int, tokens: SequenceTokens, most_output: int) -> None:
        params = tokens.params
        self.request = request
        self.index = index
        self.tokens = tokens
        self.row = -1
        self.runs_ahead = True
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self._num_output = 0
        self._most_output = most_output
        eos = () if params.ignore_eos else tokens.rules.eos_token_ids
        self.stop_ids = frozenset((*eos, *(params.stop_token_ids or ())))
        has_text = request.tokenizer is not None and params.detokenize
        self._text = CompletionText(request.request, request.tokenizer) if has_text and request.tokenizer else None
        self._logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self._cumulative_logprob = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities were asked for."""
        return self._logprobs is not None

    @property
    def needs_each_token(self) -> bool:
        """Whether each token must be taken when it is there, not only the last: for news, or as it may stop."""
        return (
            self._num_output == 0
            or self.request.stream
            or self.wants_logprobs
            or (self._text is not None and bool(self.tokens.params.stop))
        )

    def catch_up(self, num_tokens: int) -> None:
        """Take the tokens that nobody had to look at, until there are ``num_tokens`` with the prompt."""
        num_output = num_tokens - self.tokens.num_prompt_tokens
        if self._text is not None:
            for token_id in self.tokens.output[self._num_output : num_output].tolist():
                self._text.add(token_id, can_stop=False)
        self._num_output = max(self._num_output, num_output)

    def add_token(self, num_tokens: int, now: float) -> None:
        """Take the tokens until there are ``num_tokens`` with the prompt, and end if the last one says so."""
        self.catch_up(num_tokens - 1)
        if self._num_output == 0 and self.request.first_token_time is None:
            self.request.first_token_time = now
        token_id = int(self.tokens.output[self._num_output])
        self._num_output += 1
        params = self.tokens.params
        can_stop = self._num_output >= params.min_tokens
        if token_id in self.stop_ids and can_stop:
            is_eos = not params.ignore_eos and token_id in self.tokens.rules.eos_token_ids
            if self._text is not None and params.include_stop_str_in_output:
                self._text.add(token_id, can_stop=False)
            self._finish("stop", None if is_eos else token_id)
            return
        if self._text is not None:
            stopped_by = self._text.add(token_id, can_stop=can_stop)
            if stopped_by is not None:
                self._ended("stop", stopped_by)
                return
        if self._num_output >= self._most_output:
            self._finish("length", None)

    def add_logprobs(self, columns: LogprobColumns, i: int) -> None:
        """Keep row ``i`` of a step's log-probabilities for the token that is taken next."""
        assert self._logprobs is not None
        wanted = self.tokens.params.logprobs
        assert wanted is not None
        self._logprobs.append(token_logprobs(columns, i, wanted, self.request.tokenizer))
        self._cumulative_logprob += float(columns.logprobs[i, 0])

    def abort(self, reason: str | None = None) -> None:
        """End now, keeping what there is."""
        self._finish("abort", reason)

    def fail(self, reason: str, num_tokens: int) -> None:
        """End now, whatever has been interrupted, without another look at the text: it may be what failed.

        Args:
            reason: what the output says.
            num_tokens: with the prompt; how many are certain, if so many are written.
        """
        num_certain = min(num_tokens - self.tokens.num_prompt_tokens, len(self.tokens.output))
        self._num_output = max(self._num_output, num_certain)
        if self._logprobs is not None:
            self._num_output = min(self._num_output, len(self._logprobs))
            del self._logprobs[self._num_output :]
            self._cumulative_logprob = sum(next(iter(each.values())).logprob for each in self._logprobs)
        self._ended("abort", reason)

    def output(self) -> CompletionOutput:
        """What there is so far."""
        return CompletionOutput(
            index=self.index,
            text="" if self._text is None else self._text.text,
            token_ids=self.tokens.output[: self._num_output].tolist(),
            cumulative_logprob=None if self._logprobs is None else self._cumulative_logprob,
            logprobs=None if self._logprobs is None else list(self._logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        if self._text is not None:
            stopped_by = self._text.end()
            if stopped_by is not None and reason == "length":
                reason, stop_reason = "stop", stopped_by
        self._ended(reason, stop_reason)

    def _ended(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        """Last of all: whoever sees a reason finds everything else complete."""
        self.stop_reason = stop_reason
        self.finish_reason = reason


class RequestState:
    """A request and its completions, with what is told of it when.

    Attributes:
        request: as admitted.
        seed: of its random streams.
        tokenizer: None: no text.
        stream: whether the engine gives an output at every token.
        completions: by index.
        owner: who gets the outputs; see :class:`~tinyvllm.engine.engine.Engine`.
        error: why the request failed, if it did.
        num_prompt_logprobs: prompt tokens whose log-probabilities were ordered.
        first_token_time: when the first token of any completion was read back.
    """

    def __init__(self, request: Request, *, seed: int, tokenizer: Tokenizer | None, stream: bool) -> None:
        self.request = request
        self.owner: object = None
        self.error: TinyvllmError | None = None
        self.seed = seed
        self.tokenizer = tokenizer
        self.stream = stream
        self.completions: list[Completion] = []
        self.num_prompt_logprobs = 0
        self.first_token_time: float | None = None
        self._first_scheduled_time: float | None = None
        self._finished_time: float | None = None
        wants_prompt = request.params.prompt_logprobs is not None
        self._prompt_logprobs: list[TokenLogprobs | None] | None = [None] if wants_prompt else None

    @property
    def request_id(self) -> str:
        """As given, or made up."""
        return self.request.request_id

    @property
    def is_finished(self) -> bool:
        """Whether every completion has ended."""
        return all(completion.is_finished for completion in self.completions)

    @property
    def prompt_width(self) -> int:
        """How many log-probabilities beside the prompt token's own were asked for."""
        wanted = self.request.params.prompt_logprobs
        return ALL_LOGPROBS if wanted is None else wanted

    def prompt_after(self, start: int, stop: int) -> Int32:
        """The prompt tokens that positions ``start`` to ``stop - 1`` predict."""
        return self.completions[0].tokens.prompt[start + 1 : stop + 1]

    def add_prompt_logprobs(self, columns: LogprobColumns) -> None:
        """Keep the log-probabilities of the next prompt tokens."""
        assert self._prompt_logprobs is not None
        for i in range(len(columns.rank)):
            self._prompt_logprobs.append(token_logprobs(columns, i, self.prompt_width, self.tokenizer))

    def scheduled(self) -> None:
        """A completion got a slot."""
        if self._first_scheduled_time is None:
            self._first_scheduled_time = time.monotonic()

    def finished(self) -> None:
        """The last completion has ended."""
        self._finished_time = time.monotonic()

    def output(self) -> RequestOutput:
        """What there is so far."""
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.request.prompt,
            prompt_token_ids=list(self.request.prompt_token_ids),
            prompt_logprobs=None if self._prompt_logprobs is None else list(self._prompt_logprobs),
            outputs=[completion.output() for completion in self.completions],
            finished=self.is_finished,
            error=self.error,
            metrics=RequestMetrics(
                self.request.arrival_time, self._first_scheduled_time, self.first_token_time, self._finished_time
            ),
        )


def token_logprobs(columns: LogprobColumns, i: int, wanted: int, tokenizer: Tokenizer | None) -> TokenLogprobs:
    """Row ``i`` as a mapping: the chosen token, then the most likely ``wanted`` (-1: all)."""
    width = columns.token_ids.shape[1] if wanted == ALL_LOGPROBS else 1 + wanted
    token_ids = columns.token_ids[i, :width].tolist()
    logprobs = columns.logprobs[i, :width].tolist()
    ranks = [int(columns.rank[i]), *_shared_ranks(logprobs[1:])]
    if logprobs[0] in logprobs[1:]:
        ranks[0] = ranks[logprobs.index(logprobs[0], 1)]
    told: dict[int, Logprob] = {}
    for token_id, logprob, rank in zip(token_ids, logprobs, ranks, strict=True):
        if token_id not in told:  # the chosen token keeps its own rank
            text = None if tokenizer is None else tokenizer.decode_single(token_id)
            told[token_id] = Logprob(logprob, rank, text)
    return told


def _shared_ranks(logprobs: list[float]) -> list[int]:
    """Ranks of the most likely tokens, given in order: equal ones share the rank of the first of them."""
    ranks: list[int] = []
    for place, logprob in enumerate(logprobs):
        is_equal = place > 0 and logprob == logprobs[place - 1]
        ranks.append(ranks[-1] if is_equal else place + 1)
    return ranks
