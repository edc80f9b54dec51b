"""``run.task: generate``: the prompts of a configuration to text on the screen, or to a file of results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tinyvllm.config import Resolved
from tinyvllm.config.schema import RunConfig
from tinyvllm.errors import ConfigError, RequestError
from tinyvllm.llm import LLM
from tinyvllm.progress import Progress
from tinyvllm.run.feed import Result, complete
from tinyvllm.run.jobs import JobReader, merged_params
from tinyvllm.run.journal import Journal
from tinyvllm.run.refuse import refuse_fields
from tinyvllm.run.seal import InputSeal, numbered_lines, seal_file, seal_prompts
from tinyvllm.run.summary import Summary
from tinyvllm.run.transcript import print_result

_ALWAYS_NOTED = ("device:", "checkpoint:")
_SOME_FAILED = RequestError.exit_code


def generate(resolved: Resolved) -> int:
    """Complete every prompt of ``resolved.config.run``; the exit code: 2 if some of them could not be served.

    Prompts of the configuration are printed with their text, in their order. Those of a file go to ``output`` as
    JSON lines as they end, or to standard output where there is no ``output``; what ``output`` has is not done again.

    Raises:
        ConfigError: there is nothing to do; or input and output do not belong together.
        TinyvllmError: the model cannot be loaded or run.
    """
    run = resolved.config.run
    if run is None or (run.prompts is None and run.prompts_file is None):
        raise ConfigError("there is nothing to generate: give run.prompts or run.prompts_file, or --prompt")
    if run.prompts is not None and run.output is None:
        refuse_fields(resolved, ("logprobs", "prompt_logprobs"), "the screen shows text only; name a file: run.output")
    # Before the model, which may take long: mistakes in files should show at once.
    seal = seal_prompts(run.prompts) if run.prompts is not None else seal_file(resolved.path(run.prompts_file or ""))
    with ExitStack() as stack:
        journal = None
        if run.output is not None:
            journal = stack.enter_context(_open_journal(resolved.path(run.output), seal, resolved))
        llm = LLM.from_config(resolved)
        summary = Summary(llm.engine)
        for line in _notable(llm.report, resolved):
            summary.note(line)
        results = _results(llm, resolved, seal, journal, stack)
        if run.prompts is None:
            num_errors = _write(results, summary, journal)
        else:
            num_errors = _print_in_order(results, summary, journal)
    if journal is not None:
        num_errors = journal.num_errors
        summary.note(f"{journal.num_done} results in {run.output}")
    summary.print(to_stderr=run.prompts is None and journal is None)
    if num_errors:
        where = f'see "error" in {run.output}' if journal else "see above"
        total = journal.num_done if journal is not None else summary.num_results
        print(f"{num_errors} of {total} prompts could not be served; {where}", file=sys.stderr)  # noqa: T201
    return _SOME_FAILED if num_errors else 0


def _notable(report: Sequence[str], resolved: Resolved) -> Sequence[str]:
    """Of the start-up report: the device, and why; tensors that were not used; all, where kernels were chosen."""
    return report if resolved.config.kernels else [each for each in report if each.startswith(_ALWAYS_NOTED)]


def _open_journal(path: Path, seal: InputSeal, resolved: Resolved) -> Journal:
    run = _run_of(resolved)
    return Journal(path, seal, {"model": resolved.config.model, "seed": resolved.config.seed, "sampling": run.sampling})


def _results(
    llm: LLM, resolved: Resolved, seal: InputSeal, journal: Journal | None, stack: ExitStack
) -> Iterator[Result]:
    """Results as they end, with a progress bar meanwhile."""
    run = _run_of(resolved)
    defaults = merged_params(llm.get_default_sampling_params(), run.sampling)
    reader = JobReader(defaults, llm.chat_prompt, resolved.config.seed)
    num_before = journal.num_done if journal else 0
    is_done: Callable[[int], bool] = journal.is_done if journal else lambda index: False
    jobs = reader.jobs(numbered_lines(seal, run.prompts), is_done)
    progress = stack.enter_context(Progress(llm.engine, total=seal.num_lines))
    most_at_once = 2 * resolved.config.scheduler.max_num_seqs  # the next ones wait inside, so no slot is ever idle
    yield from complete(llm.engine, jobs, most_at_once, lambda num_ended: progress.update(num_before + num_ended))


def _write(results: Iterator[Result], summary: Summary, journal: Journal | None) -> int:
    """Results to the journal, or as JSON lines to standard output; the number of errors among them."""
    num_errors = 0
    for result in results:
        summary.add(result)
        num_errors += result.error is not None
        if journal is not None:
            journal.append(result.as_json())
        else:
            sys.stdout.write(f"{json.dumps(result.as_json(), ensure_ascii=False)}\n")
            sys.stdout.flush()
    return num_errors


def _print_in_order(results: Iterator[Result], summary: Summary, journal: Journal | None) -> int:
    """Results to the screen in the order of their prompts, and to the journal in the order in which they end."""
    finished: dict[int, Result] = {}
    for result in results:
        summary.add(result)
        if journal is not None:
            journal.append(result.as_json())
        finished[result.job.index] = result
    for index in sorted(finished):
        print_result(finished[index])
    return sum(result.error is not None for result in finished.values())


def _run_of(resolved: Resolved) -> RunConfig:
    assert resolved.config.run is not None
    return resolved.config.run
