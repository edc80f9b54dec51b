"""The command line as a whole: commands, exit codes, and errors as one clear line."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

import tinyvllm
from tinyvllm.cli import bench, chat, config, demo, doctor, generate, kernels, plugins, run
from tinyvllm.errors import ConfigError, TinyvllmError
from tinyvllm.nearest import did_you_mean

COMMANDS = {
    "run": run,
    "generate": generate,
    "chat": chat,
    "plugins": plugins,
    "kernels": kernels,
    "config": config,
    "doctor": doctor,
    "demo": demo,
    "bench": bench,
}
# Refused by name until they are built.
LATER_COMMANDS = ("serve", "simulate", "trace")

_INTERRUPTED = 130
_BROKEN_PIPE = 141  # what a shell reports for a program that ended by SIGPIPE

_EPILOG = """\
exit codes: 0 done; 1 a check did not pass, or a bug; 2 configuration, plugin or request;
3 checkpoint; 4 device or kernel; 5 capacity; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Errors of ours are a line on standard error, with no traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    shows_traceback = "--traceback" in arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return code
    except TinyvllmError as error:
        if shows_traceback:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="python -m tinyvllm",
        description="A plugin-based LLM inference engine. With --config alone it does what the file says.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"tinyvllm {tinyvllm.__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").splitlines()[0]
        each = commands.add_parser(name, help=summary, description=summary)
        command.add_arguments(each)
    return whole


def _run(arguments: list[str]) -> int:
    whole = parser()
    if not arguments:
        whole.print_help(sys.stderr)
        return ConfigError.exit_code
    if arguments[0] in LATER_COMMANDS:
        raise ConfigError(f"{arguments[0]} is not available in this version of tinyvllm; see --help for what is")
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        arguments = ["run", *arguments]  # python -m tinyvllm --config X
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        hint = did_you_mean(arguments[0], COMMANDS)
        raise ConfigError(f"there is no command {arguments[0]!r}{hint or ';'} the commands are {', '.join(COMMANDS)}")
    chosen = whole.parse_args(arguments)
    return int(chosen.run(chosen))
