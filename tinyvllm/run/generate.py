"""``run.task: generate``: the prompts of a configuration to text on the screen, or to a file of results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tinyvllm._progress import Progress
from tinyvllm._terminal import warn
from tinyvllm.config import Resolved
from tinyvllm.config.schema import RunConfig
from tinyvllm.errors import ConfigError, RequestError
from tinyvllm.llm import LLM
from tinyvllm.run import screen
from tinyvllm.run.feed import Result, complete
from tinyvllm.run.jobs import Job, JobReader, merged_params
from tinyvllm.run.journal import Journal
from tinyvllm.run.refuse import refuse_fields
from tinyvllm.run.seal import SealedInput, seal_file, seal_prompts
from tinyvllm.run.summary import Summary

_ALWAYS_NOTED = ("device:", "checkpoint:")
_SOME_FAILED = RequestError.exit_code


def generate(resolved: Resolved, *, is_json: bool = False, is_quiet: bool = False) -> int:
    """Complete every prompt of ``resolved.config.run``; the exit code: 2 if some of them could not be served.

    Prompts of the configuration are printed on standard output with their text, in their order; a single prompt while
    its text is generated, if that is a terminal. Those of a file go to ``output`` as JSON lines as they end, or to
    standard output where there is no ``output``; what ``output`` has is not done again. Everything that is no result
    goes to standard error.

    Args:
        resolved: the configuration.
        is_json: prompts of the configuration give JSON lines too.
        is_quiet: print texts without their prompts, and on standard error nothing but what failed.
    Raises:
        ConfigError: there is nothing to do; or input and output do not belong together.
        TinyvllmError: the model cannot be loaded or run.
    """
    run = resolved.config.run
    if run is None or (run.prompts is None and run.prompts_file is None):
        raise ConfigError(
            "there is nothing to generate: give run.prompts or run.prompts_file, --prompt, or a prompt on "
            "standard input"
        )
    is_text = run.prompts is not None and not is_json
    if is_text and run.output is None:
        refuse_fields(resolved, ("logprobs", "prompt_logprobs"), "the screen shows text only; use --json or run.output")
    with ExitStack() as stack:
        # Before the model, which may take long: mistakes in files should show at once.
        if is_text or run.output is None:
            sys.stdout.write("")  # which fails if it is closed
        seal = stack.enter_context(_sealed(run, resolved))
        journal = None
        if run.output is not None:
            journal = stack.enter_context(_open_journal(resolved.path(run.output), seal, resolved))
        work = _Work.load(resolved, seal, journal, is_quiet)
        results = stack.enter_context(closing(work.results(is_live=not is_text and run.output is None)))
        if not is_text:
            work.write(results)
        elif work.can_stream:
            work.stream()
        else:
            work.print_in_order(results)
    return work.end(run)


@dataclass(frozen=True, slots=True)
class _Work:
    """One run on its way: the engine, what it reads, where results go.

    Attributes:
        is_quiet: as for :func:`generate`.
    """

    llm: LLM
    reader: JobReader
    seal: SealedInput
    journal: Journal | None
    summary: Summary
    max_at_once: int
    is_quiet: bool

    @classmethod
    def load(cls, resolved: Resolved, seal: SealedInput, journal: Journal | None, is_quiet: bool) -> _Work:
        llm = LLM.from_config(resolved)
        summary = Summary(llm.engine)
        for line in _notable(llm.report, resolved):
            summary.note(line)
        defaults = merged_params(llm.get_default_sampling_params(), _run_of(resolved).sampling)
        reader = JobReader(defaults, llm.chat_prompt, resolved.config.seed)
        max_at_once = 2 * resolved.config.scheduler.max_num_seqs  # the next ones wait inside, so no slot is ever idle
        return cls(llm, reader, seal, journal, summary, max_at_once, is_quiet)

    @property
    def can_stream(self) -> bool:
        """Whether somebody watches a single text."""
        return self.journal is None and self.seal.num_lines == 1 and self.reader.defaults.n == 1 and sys.stdout.isatty()

    def jobs(self) -> Iterator[Job]:
        """What is not done yet."""
        is_done: Callable[[int], bool] = self.journal.is_done if self.journal else lambda index: False
        return self.reader.jobs(self.seal.lines(), is_done)

    def results(self, *, is_live: bool) -> Generator[Result, None, None]:
        """Results as they end, noted in summary and journal, with a progress bar meanwhile.

        Args:
            is_live: results are written to standard output meanwhile, where a bar must not be.
        """
        engine, num_before = self.llm.engine, self.journal.num_done if self.journal else 0
        is_shown = not self.is_quiet and not (is_live and sys.stdout.isatty())
        with Progress(engine, total=self.seal.num_lines, is_shown=is_shown) as progress:
            results = complete(
                engine, self.jobs(), self.max_at_once, lambda num_ended: progress.update(num_before + num_ended)
            )
            with closing(results):
                for result in results:
                    self.summary.add(result)
                    if self.journal is not None:
                        self.journal.append(result.as_json())
                    yield result

    def write(self, results: Iterator[Result]) -> None:
        """Results as JSON lines to standard output, unless they are in the journal."""
        for result in results:
            if self.journal is None:
                screen.write_json(result)

    def print_in_order(self, results: Iterator[Result]) -> None:
        """Results to the screen in the order of their prompts."""
        for result in sorted(results, key=lambda result: result.job.index):
            screen.show(result, is_quiet=self.is_quiet)

    def stream(self) -> None:
        """The text of the only prompt to the screen while it is generated."""
        for job in self.jobs():
            self.summary.add(screen.show_while_generated(self.llm, job, is_quiet=self.is_quiet))

    def end(self, run: RunConfig) -> int:
        """Print the summary and what failed; the exit code."""
        journal, summary = self.journal, self.summary
        if journal is not None:
            summary.note(f"{journal.num_done} results in {run.output}")
        sys.stdout.flush()  # results come before what is said of them
        if not self.is_quiet:
            summary.print()
        num_errors = journal.num_errors if journal is not None else summary.num_errors
        if num_errors:
            where = f'see "error" in {run.output}' if journal else "see above"
            total = journal.num_done if journal is not None else summary.num_results
            warn(f"{num_errors} of {total} prompts could not be served; {where}")
        return _SOME_FAILED if num_errors else 0


def _sealed(run: RunConfig, resolved: Resolved) -> SealedInput:
    if run.prompts is not None:
        return seal_prompts(run.prompts)
    assert run.prompts_file is not None
    return seal_file(resolved.path(run.prompts_file))


def _notable(report: Sequence[str], resolved: Resolved) -> Sequence[str]:
    """Of the start-up report: the device, and why; tensors that were not used; all, where kernels were chosen."""
    return report if resolved.config.kernels else [each for each in report if each.startswith(_ALWAYS_NOTED)]


def _open_journal(path: Path, seal: SealedInput, resolved: Resolved) -> Journal:
    run = _run_of(resolved)
    return Journal(path, seal, {"model": resolved.config.model, "seed": resolved.config.seed, "sampling": run.sampling})


def _run_of(resolved: Resolved) -> RunConfig:
    assert resolved.config.run is not None
    return resolved.config.run
