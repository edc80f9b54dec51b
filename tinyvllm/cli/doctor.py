"""Say what this machine has, and what will be used."""

from __future__ import annotations

import argparse

from tinyvllm.cli.options import add_traceback_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``doctor`` has no arguments of its own."""
    add_traceback_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """A line for each finding."""
    from tinyvllm.run.doctor import findings

    for subject, finding in findings():
        print(f"{subject:<16}{finding}")
    return 0
