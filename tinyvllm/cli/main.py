"""The command line as a whole: commands, exit codes, and errors as one clear line."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

import tinyvllm
from tinyvllm._nearest import did_you_mean
from tinyvllm.cli import streams
from tinyvllm.cli.commands import COMMANDS
from tinyvllm.errors import CapacityError, ConfigError, TinyvllmError

_BUG = 1
_INTERRUPTED = 130
_BROKEN_PIPE = 141  # what a shell reports for a program that ended by SIGPIPE

_COMMAND_WORDS = 4  # of "python -m tinyvllm bench", which is no verb

_EPILOG = """\
COMMAND --help shows its flags, their defaults and examples.

exit codes: 0 done; 1 a check did not pass, or a bug; 2 configuration, plugin or request;
3 checkpoint; 4 device or kernel; 5 capacity; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Errors of ours are a line on standard error, with no traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    try:
        try:
            code = _run(arguments)
        finally:
            sys.stdout.flush()  # here, where a closed pipe or a full disk can still be handled
        return code
    except KeyboardInterrupt:
        streams.say("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        return _BROKEN_PIPE
    except Exception as error:
        known = _as_ours(error)
        if known is None:
            raise
        if "--traceback" in arguments:
            traceback.print_exc()
        streams.say(f"error: {known}")
        return known.exit_code
    finally:
        streams.give_up()


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. ``parser`` in the namespace is the parser of the chosen verb."""
    whole = argparse.ArgumentParser(
        prog="python -m tinyvllm",
        description="A plugin-based LLM inference engine. With --config alone it does what the file says.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    whole.add_argument("-V", "--version", action="version", version=f"tinyvllm {tinyvllm.__version__}")
    groups = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        each = groups.add_parser(name, help=command.summary, description=command.summary)
        command.module.add_arguments(each)
        for verb in verbs_of(each):
            verb.set_defaults(parser=verb)
            _explain(verb, command.examples)
        _explain(each, command.examples)
    return whole


def _explain(one: argparse.ArgumentParser, examples: Sequence[str]) -> None:
    """Let the help of a command or verb show defaults, and those of the examples that are of it."""
    one.formatter_class = HelpFormatter
    commands = [f"python -m tinyvllm {example}" for example in examples]
    own = [command for command in commands if command.startswith(one.prog) or len(one.prog.split()) == _COMMAND_WORDS]
    if own:
        one.epilog = "\n".join(["examples:", *(f"  {command}" for command in own)])


def verbs_of(command: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of a command's verbs, or of the command itself if it has none."""
    groups = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield command
    for group in groups:
        for verb in group.choices.values():
            yield from verbs_of(verb)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, and the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        if (
            not text
            or not action.option_strings
            or "default" in text
            or default in (None, False, argparse.SUPPRESS, [])
        ):
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{text} (default: {shown})"


def _run(arguments: list[str]) -> int:
    whole = parser()
    if not arguments:
        whole.print_help(sys.stderr)
        return ConfigError.exit_code
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "-V", "--version"):
        arguments = ["run", *arguments]  # python -m tinyvllm --config X
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        hint = did_you_mean(arguments[0], COMMANDS)
        raise ConfigError(f"there is no command {arguments[0]!a}{hint or ';'} the commands are {', '.join(COMMANDS)}")
    chosen, unknown = whole.parse_known_args(arguments)
    if unknown:
        _refuse(chosen.parser, unknown)
    return int(chosen.run(chosen))


def _refuse(verb: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    """Show how the verb is used, and say what is not known of it."""
    flags = [flag for action in verb._actions for flag in action.option_strings]
    name = unknown[0].partition("=")[0]
    hint = did_you_mean(name, flags) if name.startswith("-") else ""
    verb.error(f"unrecognized arguments: {' '.join(map(ascii_or_as_is, unknown))}{hint}")


def ascii_or_as_is(text: str) -> str:
    """``text`` in 100 characters at most, escaped where it holds what a terminal would obey."""
    return text[:100] if text.isprintable() else ascii(text[:100])


def _as_ours(error: Exception) -> TinyvllmError | None:
    """The error to report in place of ``error``; None for a bug, of which the traceback is wanted."""
    if isinstance(error, CapacityError):
        return error
    reason = error.__cause__ if isinstance(error, TinyvllmError) else error  # a plugin is not to blame for it
    if _is_out_of_memory(reason):
        return CapacityError(
            f"memory ran out{f': {reason}' if str(reason) else ''}; lower max_model_len, scheduler.max_num_seqs or "
            "scheduler.max_num_batched_tokens, or raise the limit of this process (ulimit -v)"
        )
    if isinstance(error, TinyvllmError):
        return error
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return ConfigError("a path begins with ~, and there is no such home folder; write the whole path")
    if not isinstance(error, OSError):
        return None
    if _is_folder_gone():
        return ConfigError("the current folder has been deleted; change to another one")
    where = f"{error.filename!a}: " if error.filename is not None else ""
    failed = TinyvllmError(f"{where}{error.strerror or error}; --traceback shows where it happened")
    assert failed.exit_code == _BUG
    return failed


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Memory, or address space, or threads, which need both."""
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error) or "annot allocate memory" in str(error)
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def _is_folder_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
