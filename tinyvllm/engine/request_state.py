"""A request while it is served: its completions, its prompt's log-probabilities, and when things happened to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tinyvllm.batch import ALL_LOGPROBS, LogprobColumns
from tinyvllm.engine.completion import Completion
from tinyvllm.engine.token_logprobs import token_logprobs
from tinyvllm.errors import TinyvllmError
from tinyvllm.outputs import (
    CompletionOutput,
    OutputDelta,
    PromptOutput,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
    cumulative_logprob,
)
from tinyvllm.request import Request
from tinyvllm.shapes import Int32

if TYPE_CHECKING:
    from tinyvllm.text.tokenizer import Tokenizer


class RequestState:
    """A request, its completions, and what is known of its prompt.

    Attributes:
        request: as admitted.
        seed: of its random streams.
        tokenizer: None: no text.
        stream: whether the engine gives deltas at every token; otherwise one, at the end.
        completions: by index.
        owner: who gets the deltas; see :class:`~tinyvllm.engine.engine.Engine`.
        error: why the request failed; None if it did not.
        num_prompt_logprobs: prompt tokens whose log-probabilities a step has computed or is computing.
        first_token_time: when the first token of any completion was read back; None: not yet.
    """

    def __init__(self, request: Request, *, seed: int, tokenizer: Tokenizer | None, stream: bool) -> None:
        self.request = request
        self.request_id = request.request_id
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
        has_prompt_logprobs = request.params.prompt_logprobs is not None
        self._prompt_logprobs: list[TokenLogprobs | None] | None = [None] if has_prompt_logprobs else None

    @property
    def is_finished(self) -> bool:
        """Whether every completion has ended."""
        return all(completion.is_finished for completion in self.completions)

    @property
    def prompt_width(self) -> int:
        """How many log-probabilities beside the prompt token's own were asked for."""
        num_logprobs = self.request.params.prompt_logprobs
        return ALL_LOGPROBS if num_logprobs is None else num_logprobs

    def prompt_after(self, start: int, stop: int) -> Int32:
        """The prompt tokens that positions ``start`` to ``stop - 1`` predict; a copy."""
        return self.completions[0].tokens.prompt[start + 1 : stop + 1].copy()

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

    def prompt_output(self) -> PromptOutput:
        """The prompt, with the log-probabilities that are known."""
        logprobs = None if self._prompt_logprobs is None else list(self._prompt_logprobs)
        return PromptOutput(self.request.prompt, list(self.request.prompt_token_ids), logprobs)

    def metrics(self) -> RequestMetrics:
        """When things happened."""
        return RequestMetrics(
            self.request.arrival_time, self._first_scheduled_time, self.first_token_time, self._finished_time
        )

    def whole(self) -> OutputDelta:
        """The one delta of a request that does not stream and has ended."""
        prompt, metrics = self.prompt_output(), self.metrics()
        output = RequestOutput(
            request_id=self.request_id,
            prompt=prompt.prompt,
            prompt_token_ids=prompt.prompt_token_ids,
            prompt_logprobs=prompt.prompt_logprobs,
            outputs=[_completion_output(completion) for completion in self.completions],
            finished=True,
            metrics=metrics,
            num_cached_tokens=prompt.num_cached_tokens,
            error=self.error,
        )
        first = output.outputs[0]
        return OutputDelta(
            self.request_id, 0, first.text, first.token_ids, first.logprobs, first.finish_reason, first.stop_reason,
            metrics=metrics, error=self.error, output=output,
        )  # fmt: skip


def _completion_output(completion: Completion) -> CompletionOutput:
    """All that a completion has produced, none of which is in a delta yet."""
    unread = completion.unread
    return CompletionOutput(
        index=completion.index,
        text="".join(unread.texts),
        token_ids=unread.token_ids,
        cumulative_logprob=None if unread.logprobs is None else cumulative_logprob(unread.logprobs),
        logprobs=unread.logprobs,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
    )
