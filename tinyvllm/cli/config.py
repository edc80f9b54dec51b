"""Show a configuration as it is resolved, or the schema of configuration files."""

from __future__ import annotations

import argparse
import json

from tinyvllm.cli.options import add_config_arguments, add_engine_arguments, add_traceback_argument, resolve
from tinyvllm.config.schema import json_schema
from tinyvllm.config.show import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``config show`` and ``config schema``."""
    verbs = parser.add_subparsers(title="verbs", metavar="show | schema", required=True)
    shows = verbs.add_parser("show", help="every resolved value, as YAML, with where it came from")
    add_engine_arguments(shows)
    add_config_arguments(shows)
    shows.set_defaults(run=run_show)
    schema = verbs.add_parser("schema", help="the JSON Schema of configuration files")
    add_traceback_argument(schema)
    schema.set_defaults(run=run_schema)


def run_show(args: argparse.Namespace) -> int:
    """Print the configuration."""
    print(show(resolve(args)))
    return 0


def run_schema(args: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(json_schema(), indent=2))
    return 0
