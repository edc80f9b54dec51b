"""What comes back from the engine. Frozen values; lists are the caller's to keep, nobody writes them afterwards."""

from __future__ import annotations

from collections.abc import Mapping
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
class OutputDelta:
    """What is new of one completion since the delta before.

    Attributes:
        request_id: as given, or made up by the engine.
        index: which completion of the request, 0 to ``n - 1``.
        text: new text; empty while a character or a stop string is incomplete.
        token_ids: new tokens.
        logprobs: one mapping per new token; None if not asked for.
        finish_reason, stop_reason: as in :class:`CompletionOutput`; None while the completion goes on.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


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


class Deltas:
    """Cuts the outputs of one request, which hold all that there is so far, into what is new in each."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int, bool]] = {}  # by index: characters, tokens, whether it had ended

    def of(self, output: RequestOutput) -> list[OutputDelta]:
        """A delta for each completion that has grown or ended since the last call."""
        deltas = []
        for completion in output.outputs:
            num_characters, num_tokens, had_ended = self._seen.get(completion.index, (0, 0, False))
            if had_ended or (len(completion.token_ids) == num_tokens and not completion.finished):
                continue
            logprobs = None if completion.logprobs is None else completion.logprobs[num_tokens:]
            deltas.append(
                OutputDelta(
                    output.request_id, completion.index, completion.text[num_characters:],
                    completion.token_ids[num_tokens:], logprobs, completion.finish_reason, completion.stop_reason,
                )
            )  # fmt: skip
            self._seen[completion.index] = len(completion.text), len(completion.token_ids), completion.finished
        return deltas
