"""Complete prompts given on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from tinyvllm.cli.options import add_config_arguments, add_engine_arguments, add_sampling_arguments, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``generate``."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="a prompt; may be repeated")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
    add_engine_arguments(parser)
    add_sampling_arguments(parser)
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Complete the prompts, or those of the configuration if there are none."""
    prompts = [*args.prompt, *args.prompts]
    extra: dict[tuple[str, ...], Any] = {("run", "prompts"): prompts, ("run", "prompts_file"): None} if prompts else {}
    resolved = resolve(args, extra)
    from tinyvllm.run.generate import generate

    return generate(resolved)
