"""Results on standard output: as text for people, or as JSON lines for programs."""

from __future__ import annotations

import json
import sys

from tinyvllm._terminal import warn
from tinyvllm.errors import RequestError
from tinyvllm.llm import LLM
from tinyvllm.outputs import OutputAssembler
from tinyvllm.run.console import Console
from tinyvllm.run.feed import Result, result_of
from tinyvllm.run.jobs import Job
from tinyvllm.run.transcript import print_result, printable, prompt_of


def write_json(result: Result) -> None:
    """One line, at once. Characters that standard output cannot spell are escaped as JSON has it."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(f"{json.dumps(result.as_json(), ensure_ascii=not is_unicode)}\n")
    sys.stdout.flush()


def show(result: Result, *, is_quiet: bool) -> None:
    """A prompt and its text, or each of its texts.

    Args:
        result: of the prompt.
        is_quiet: only the texts; an error goes to standard error.
    """
    if not is_quiet:
        print_result(result)
    elif result.output is None:
        _warn_of(result)
    else:
        for completion in result.output.outputs:
            sys.stdout.write(f"{printable(completion.text)}\n")


def show_while_generated(llm: LLM, job: Job, *, is_quiet: bool) -> Result:
    """A prompt, then its text piece by piece as it is generated.

    Args:
        llm: who generates; it does nothing else meanwhile.
        job: the prompt.
        is_quiet: only the text; an error goes to standard error.
    Returns:
        the whole result, which has been shown.
    """
    if not is_quiet:
        console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)
        console.print(f"> {printable(prompt_of(job))}", style="bold")
    result = _generate_shown(llm, job)
    if result.output is not None:
        sys.stdout.write("\n" if is_quiet else "\n\n")
    elif is_quiet:
        _warn_of(result)
    else:
        console.print(f"error: {result.error}\n", style="red")
    return result


def _generate_shown(llm: LLM, job: Job) -> Result:
    engine, request_id, assembler = llm.engine, "streamed", OutputAssembler()
    if job.prompt is None:
        return Result(job, error=job.error)
    try:
        engine.add_request(request_id, job.prompt, job.params)
    except RequestError as error:
        return Result(job, error=str(error))
    try:
        while True:
            deltas = engine.step()
            sys.stdout.write(printable("".join(delta.text for delta in deltas)))
            sys.stdout.flush()
            for output in assembler.add(deltas):
                return result_of(job, output)
    finally:
        engine.abort_request(request_id)


def _warn_of(result: Result) -> None:
    warn(f"error: prompt {result.job.index + 1}: {printable(str(result.error))}")
