"""Check the checkpoint that ships on held-out items, or print such items."""

from __future__ import annotations

import argparse
import json

from tinyvllm.cli.options import add_config_arguments, add_engine_arguments, resolve
from tinyvllm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``demo``."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--verify", action="store_true", help="a line per task; exit code 1 if one falls short")
    what.add_argument("--sample", metavar="TASK", help="held-out items of a task, as JSON lines")
    parser.add_argument("--items", type=int, default=500, help="items of each task (default 500)")
    parser.add_argument("--seed", dest="item_seed", type=int, default=0, help="chooses the items (default 0)")
    add_engine_arguments(parser)
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify, or print items."""
    from tinyvllm.demo.verify import sample, verify

    try:
        if args.sample is not None:
            for item in sample(args.sample, args.items, args.item_seed):
                print(json.dumps(item))
            return 0
        from tinyvllm.run.demo import completer

        report = verify(completer(resolve(args)), args.item_seed, args.items)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print("\n".join(report.lines))
    return 0 if report.is_passed else 1
