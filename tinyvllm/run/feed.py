"""Jobs through an engine, a bounded number at a time: a million prompts need no more memory than a few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tinyvllm.engine.engine import Engine
from tinyvllm.errors import RequestError
from tinyvllm.outputs import RequestOutput
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
        completions = [
            {"text": each.text, "token_ids": each.token_ids, "finish_reason": each.finish_reason}
            for each in self.output.outputs
        ]
        line |= completions[0]
        return line if len(completions) == 1 else {**line, "outputs": completions}


def complete(
    engine: Engine, jobs: Iterable[Job], most_at_once: int, on_step: Callable[[int], None] = lambda num_ended: None
) -> Iterator[Result]:
    """The result of each job, in the order in which they end.

    Args:
        engine: to run them; what is unfinished is aborted if the caller stops early.
        jobs: taken one by one as there is room.
        most_at_once: jobs in the engine, waiting ones included.
        on_step: called after every step with the number of jobs that have ended.
    """
    waiting, live, num_ended = iter(jobs), dict[str, Job](), 0
    try:
        while True:
            while len(live) < most_at_once and (job := next(waiting, None)) is not None:
                refused = _add(engine, job)
                if refused is None:
                    live[_request_id(job)] = job
                else:
                    num_ended += 1
                    yield refused
            if not live:
                return
            for output in engine.step():
                if output.finished:
                    num_ended += 1
                    yield _result(live.pop(output.request_id), output)
            on_step(num_ended)
    finally:
        for request_id in live:
            engine.abort_request(request_id)


def _add(engine: Engine, job: Job) -> Result | None:
    """Give the job to the engine; the result, if it was refused."""
    if job.error is not None or job.prompt is None:
        return Result(job, error=job.error)
    try:
        engine.add_request(_request_id(job), job.prompt, job.params, stream=False)
    except RequestError as error:
        return Result(job, error=str(error))
    return None


def _result(job: Job, output: RequestOutput) -> Result:
    for completion in output.outputs:
        if completion.finish_reason == "abort":
            return Result(job, error=f"aborted: {completion.stop_reason or 'no reason was given'}")
    return Result(job, output)


def _request_id(job: Job) -> str:
    return f"line-{job.index}"
