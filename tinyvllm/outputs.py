"""What comes back from the engine. Frozen values; lists are the caller's to keep, nobody writes them afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tinyvllm.errors import TinyvllmError

FinishReason: TypeAlias = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability by the raw logits, before penalties and temperature.

    Attributes:
        logprob: natural logarithm of the token's probability.
        rank: 1 plus the number of tokens that are more likely; equally likely tokens share a rank. (vLLM gives the
            chosen token the last rank among its equals, and the others their place in the list.)
        decoded_token: the token's text; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


TokenLogprobs: TypeAlias = Mapping[int, Logprob]


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened to a request, in seconds on the engine's monotonic clock; None: not yet.

    Attributes:
        arrival_time: when the engine took the request.
        first_scheduled_time: when a step first computed some of the request's tokens.
        first_token_time: when the first generated token was read back.
        finished_time: when the last completion ended.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None

    @property
    def time_in_queue_s(self) -> float | None:
        """Seconds from arrival to the first step."""
        return self._since_arrival(self.first_scheduled_time)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first token."""
        return self._since_arrival(self.first_token_time)

    @property
    def e2e_latency_s(self) -> float | None:
        """Seconds from arrival to the end."""
        return self._since_arrival(self.finished_time)

    def _since_arrival(self, time: float | None) -> float | None:
        return None if time is None else time - self.arrival_time


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: which completion of the request, 0 to ``n - 1``.
        text: text of the tokens so far; empty if ``detokenize`` is false.
        token_ids: the tokens that were generated so far.
        cumulative_logprob: sum of the generated tokens' log-probabilities; None if ``logprobs`` was not asked for.
        logprobs: one mapping per generated token, the chosen one always in it; None if not asked for.
        finish_reason: ``"stop"`` (end-of-sequence, a stop string or a stop token), ``"length"`` or ``"abort"``; None
            while the completion goes on.
        stop_reason: the stop string or stop token id that ended the completion; None for every other end.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        """Whether the completion has ended, for whatever reason."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class PromptOutput:
    """What a request says of its prompt.

    Attributes:
        prompt: text of the prompt; None if only tokens were given.
        prompt_token_ids: tokens of the prompt.
        prompt_logprobs: one mapping per prompt token, None for the first; None if not asked for.
        num_cached_tokens: prompt tokens whose K and V came from an earlier request; always 0 in this version.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    num_cached_tokens: int = 0


@dataclass(slots=True)
class OutputDelta:
    """What one completion has produced since its previous delta; :class:`OutputAssembler` puts deltas together.

    A request that was added with ``stream=False`` gives one delta, at its end: ``output`` is then the whole output, and
    the other fields are those of its first completion.

    Attributes:
        request_id: as given, or made up by the engine.
        index: which completion of the request, 0 to ``n - 1``.
        text: new text; empty while a character or a stop string is incomplete.
        token_ids: new tokens.
        logprobs: one mapping per new token; None if not asked for.
        finish_reason, stop_reason: as in :class:`CompletionOutput`; None while the completion goes on.
        prompt: the prompt, in the first delta of a request that streams; None in every other.
        metrics: when things happened to the request, in its last delta; None in every other.
        error: why the request failed, in the deltas that end its completions; None if it did not.
        output: the whole output of a request that does not stream; None if it streams.
    """

    # Not frozen, because a delta is made for every token of every stream: to make a frozen one takes 1 us longer.
    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt: PromptOutput | None = None
    metrics: RequestMetrics | None = None
    error: TinyvllmError | None = None
    output: RequestOutput | None = None

    @property
    def finished(self) -> bool:
        """Whether this is the last delta of its request."""
        return self.metrics is not None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What a request has produced so far.

    Attributes:
        request_id: as given, or made up by the engine.
        prompt: text of the prompt; None if only tokens were given.
        prompt_token_ids: tokens of the prompt.
        prompt_logprobs: one mapping per prompt token, None for the first; None if not asked for.
        outputs: the completions, by ``index``.
        finished: whether all completions have ended.
        metrics: when things happened to the request; None if it was not measured.
        num_cached_tokens: prompt tokens whose K and V came from an earlier request; always 0 in this version.
        error: why the request failed; None if it did not. The completions of one that failed end with ``"abort"``.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0
    error: TinyvllmError | None = None


class OutputAssembler:
    """Assembles the outputs of any number of requests from their deltas."""

    def __init__(self) -> None:
        self._unfinished: dict[str, list[OutputDelta]] = {}  # by request id

    def add(self, deltas: Iterable[OutputDelta]) -> list[RequestOutput]:
        """Take deltas in the order in which the engine gave them.

        Returns:
            the whole outputs of the requests that have ended with one of ``deltas``; these requests are then forgotten.
        """
        finished = []
        for delta in deltas:
            self._unfinished.setdefault(delta.request_id, []).append(delta)
            if delta.finished:
                finished.append(_assembled(self._unfinished.pop(delta.request_id)))
        return finished

    def output_so_far(self, request_id: str) -> RequestOutput | None:
        """What an unfinished request has produced; None if no delta of it has come."""
        deltas = self._unfinished.get(request_id)
        return None if deltas is None else _assembled(deltas)


def _assembled(deltas: Sequence[OutputDelta]) -> RequestOutput:
    """What the deltas of one request amount to."""
    prompt, last = deltas[0].prompt, deltas[-1]
    if last.output is not None:
        return last.output
    assert prompt is not None, "the first delta of a request is missing"
    by_index: dict[int, list[OutputDelta]] = {}
    for delta in deltas:
        by_index.setdefault(delta.index, []).append(delta)
    return RequestOutput(
        request_id=last.request_id,
        prompt=prompt.prompt,
        prompt_token_ids=prompt.prompt_token_ids,
        prompt_logprobs=prompt.prompt_logprobs,
        outputs=[_completion_output(by_index[index]) for index in sorted(by_index)],
        finished=last.finished,
        metrics=last.metrics,
        num_cached_tokens=prompt.num_cached_tokens,
        error=last.error,
    )


def _completion_output(deltas: Sequence[OutputDelta]) -> CompletionOutput:
    """What the deltas of one completion amount to."""
    last, logprobs = deltas[-1], None
    if last.logprobs is not None:
        logprobs = [each for delta in deltas for each in delta.logprobs or ()]
    return CompletionOutput(
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        cumulative_logprob=None if logprobs is None else cumulative_logprob(logprobs),
        logprobs=logprobs,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )


def cumulative_logprob(logprobs: Iterable[TokenLogprobs]) -> float:
    """The sum of the generated tokens' log-probabilities; the chosen token is the first of each mapping."""
    return sum((next(iter(each.values())).logprob for each in logprobs), 0.0)
