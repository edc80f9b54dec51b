"""Do what a configuration file says; `python -m tinyvllm --config FILE` for short."""

from __future__ import annotations

import argparse

from tinyvllm.cli.options import (
    add_config_arguments,
    add_engine_arguments,
    add_result_arguments,
    add_sampling_arguments,
    resolve,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    add_config_arguments(parser, is_required=True)
    add_result_arguments(parser)
    add_engine_arguments(parser)
    add_sampling_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the file and carry out its ``run`` section."""
    resolved = resolve(args)
    from tinyvllm.run.generate import generate  # the engine, not needed to find mistakes in the file

    return generate(resolved, is_json=args.json, is_quiet=args.quiet)
