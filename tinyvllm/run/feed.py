"""Jobs through an engine, a bounded number at a time: a million prompts need no more memory than a few."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tinyvllm.engine.engine import Engine
from tinyvllm.errors import RequestError
from tinyvllm.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from tinyvllm.run.jobs import Job


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job: an output, or an error."""

    job: Job
    output: RequestOutput | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The line of a result file."""
        line: dict[str, Any] = {"index": self.job.index, "id": self.job.id}
        if self.output is None:
            return {**line, "error": self.error}
        if self.output.prompt_logprobs is not None:
            line["prompt_logprobs"] = [_as_json(each) for each in self.output.prompt_logprobs]
        completions = [_completion_as_json(each) for each in self.output.outputs]
        line |= completions[0]
        return line if len(completions) == 1 else {**line, "outputs": completions}


def complete(
    engine: Engine, jobs: Iterable[Job], max_at_once: int, on_step: Callable[[int], None] = lambda num_ended: None
) -> Generator[Result, None, None]:
    """The result of each job, in the order in which they end.

    Args:
        engine: to run them; what is unfinished is aborted if the caller stops early.
        jobs: taken one by one as there is room.
        max_at_once: jobs in the engine, waiting ones included.
        on_step: called after every step with the number of jobs that have ended.
    """
    waiting, live, num_ended = iter(jobs), dict[str, Job](), 0
    try:
        while True:
            while len(live) < max_at_once and (job := next(waiting, None)) is not None:
                refused = _add(engine, job)
                if refused is None:
                    live[_request_id(job)] = job
                else:
                    num_ended += 1
                    yield refused
            if not live:
                return
            for delta in engine.step():
                if delta.output is not None:
                    num_ended += 1
                    yield result_of(live.pop(delta.request_id), delta.output)
            on_step(num_ended)
    finally:
        for request_id in live:
            engine.abort_request(request_id)


def result_of(job: Job, output: RequestOutput) -> Result:
    """The result of a job that has ended; an error if it was aborted."""
    for completion in output.outputs:
        if completion.finish_reason == "abort":
            return Result(job, error=f"aborted: {completion.stop_reason or 'no reason was given'}")
    return Result(job, output)


def _add(engine: Engine, job: Job) -> Result | None:
    """Give the job to the engine; the result, if it was refused."""
    if job.error is not None or job.prompt is None:
        return Result(job, error=job.error)
    try:
        engine.add_request(_request_id(job), job.prompt, job.params, priority=job.priority, stream=False)
    except RequestError as error:
        return Result(job, error=str(error))
    return None


def _request_id(job: Job) -> str:
    return f"line-{job.index}"


def _completion_as_json(completion: CompletionOutput) -> dict[str, Any]:
    fields = {"text": completion.text, "token_ids": completion.token_ids, "finish_reason": completion.finish_reason}
    if completion.logprobs is None:
        return fields
    logprobs = [_as_json(each) for each in completion.logprobs]
    return {**fields, "cumulative_logprob": _number(completion.cumulative_logprob), "logprobs": logprobs}


def _as_json(logprobs: TokenLogprobs | None) -> dict[int, dict[str, Any]] | None:
    """By token id, of which JSON makes text."""
    if logprobs is None:
        return None
    return {token_id: {**asdict(each), "logprob": _number(each.logprob)} for token_id, each in logprobs.items()}


def _number(logprob: float | None) -> float | None:
    """The logarithm of a probability of zero, which JSON does not know, is null."""
    return logprob if logprob is not None and math.isfinite(logprob) else None
