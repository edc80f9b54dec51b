"""Complete prompts given on the command line or on standard input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tinyvllm.cli.options import (
    add_config_arguments,
    add_engine_arguments,
    add_result_arguments,
    add_sampling_arguments,
    resolve,
)
from tinyvllm.config import Resolved
from tinyvllm.errors import ConfigError

_STANDARD_INPUT = "-"
_MAX_BYTES = 16 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``generate``."""
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="a prompt; may be repeated; - is all that standard input has"
    )
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
    add_result_arguments(parser)
    add_engine_arguments(parser)
    add_sampling_arguments(parser)
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Complete the prompts; without any those of the configuration, or what is on standard input."""
    resolved = _resolved(args, _read_named([*args.prompt, *args.prompts]))
    run_section = resolved.config.run
    if run_section is None or (run_section.prompts is None and run_section.prompts_file is None):
        resolved = _resolved(args, [text] if (text := _read_if_piped()) else [])
    from tinyvllm.run.generate import generate  # the engine, not needed to find mistakes in the configuration

    return generate(resolved, is_json=args.json, is_quiet=args.quiet)


def _resolved(args: argparse.Namespace, prompts: Sequence[str]) -> Resolved:
    extra: dict[tuple[str, ...], Any] = {}
    if prompts:
        extra = {("run", "prompts"): list(prompts), ("run", "prompts_file"): None}
    return resolve(args, extra)


def _read_named(prompts: Sequence[str]) -> list[str]:
    """The prompts, with what standard input has in place of ``-``."""
    if prompts.count(_STANDARD_INPUT) > 1:
        raise ConfigError("the prompt - is given twice, and standard input can be read once")
    return [_read() if prompt == _STANDARD_INPUT else prompt for prompt in prompts]


def _read_if_piped() -> str:
    return "" if sys.stdin.isatty() else _read()


def _read() -> str:
    """All of standard input as one prompt, without the end of its last line."""
    try:
        contents = sys.stdin.buffer.read(_MAX_BYTES + 1)
        if len(contents) > _MAX_BYTES:
            raise ConfigError(f"standard input has more than {_MAX_BYTES:,} bytes, which is no prompt")
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte 0x{contents[error.start]:02x} at {error.start}"
        raise ConfigError(f"standard input is not UTF-8: {what}; iconv -t UTF-8 makes it that") from error
    except OSError as error:
        raise ConfigError(f"standard input cannot be read: {error.strerror}") from error
    return text.removesuffix("\n").removesuffix("\r")
