"""What comes back from the engine. Frozen values; lists are the caller's to keep, nobody writes them afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tinyvllm.errors import TinyvllmError

FinishReason: TypeAlias = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability under the raw logits, before penalties and temperature.

    Attributes:
        logprob: natural logarithm.
        rank: 1 plus the number of tokens that are more likely; equally likely tokens share a rank. (vLLM gives the
            chosen token the last rank among its equals, and the others their place in the list.)
        decoded_token: its text; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


TokenLogprobs: TypeAlias = Mapping[int, Logprob]


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened to a request, in seconds on the engine's monotonic clock; None: not yet.

    Attributes:
        arrival_time: the engine took the request.
        first_scheduled_time: a step first computed some of it.
        first_token_time: its first token was read back.
        finished_time: its last completion ended.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None

    @property
    def time_in_queue_s(self) -> float | None:
        """Arrival to first scheduled."""
        return self._since_arrival(self.first_scheduled_time)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from arrival."""
        return self._since_arrival(self.first_token_time)

    @property
    def e2e_latency_s(self) -> float | None:
        """Arrival to the end."""
        return self._since_arrival(self.finished_time)

    def _since_arrival(self, time: float | None) -> float | None:
        return None if time is None else time - self.arrival_time


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: 0 to ``n - 1``.
        text: of the tokens so far; empty if ``detokenize`` is false.
        token_ids: generated so far.
        cumulative_logprob: sum over the generated tokens; None if ``logprobs`` was not asked for.
        logprobs: one mapping per generated token, the chosen one always in it; None if not asked for.
        finish_reason: ``"stop"``, ``"length"`` or ``"abort"``; None while it goes on.
        stop_reason: the stop string or stop token id that ended it; None for end-of-sequence or otherwise.
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
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """What is new of one completion since the delta before.

    Attributes:
        request_id: as given, or made up by the engine.
        index: of the completion, 0 to ``n - 1``.
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
        prompt: its text; None if only tokens were given.
        prompt_token_ids: its tokens.
        prompt_logprobs: one mapping per prompt token, None for the first; None if not asked for.
        outputs: the completions, by ``index``.
        finished: whether all of them have ended.
        metrics: times; None if nobody measured.
        num_cached_tokens: prompt tokens whose K and V came from an earlier request.
        error: why the request failed, if it did; its completions then end with ``"abort"``.
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
