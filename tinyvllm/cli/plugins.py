"""List plugins, or check what they can serve."""

from __future__ import annotations

import argparse

from tinyvllm.cli.options import add_config_arguments, add_engine_arguments, resolve
from tinyvllm.cli.text_table import aligned
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``plugins list`` and ``plugins check``."""
    verbs = parser.add_subparsers(title="verbs", metavar="list | check", required=True)
    lists = verbs.add_parser("list", help="kind, name, distribution, version, API and state; imports none of them")
    add_config_arguments(lists)
    lists.set_defaults(run=run_list)
    check = verbs.add_parser("check", help="import each one, and tell what it says of a model and device")
    check.add_argument("--kind", choices=[kind.value for kind in Kind], help="only this kind")
    check.add_argument("--name", help="only this name")
    add_engine_arguments(check)
    add_config_arguments(check)
    check.set_defaults(run=run_check)


def run_list(args: argparse.Namespace) -> int:
    """A line for every plugin that is installed or named in the configuration."""
    from tinyvllm.registry import Registry

    registry = resolve(args).registry if args.config is not None or args.set else Registry(args.plugin)
    rows = [
        (info.kind or info.group, info.name, info.distribution, info.version or "-", f"v{info.api_version}", info.state)
        for info in registry.available()
    ]
    print(aligned(("KIND", "NAME", "DISTRIBUTION", "VERSION", "API", "STATE"), rows))
    return 0


def run_check(args: argparse.Namespace) -> int:
    """A line for every plugin, with the reasons where it is broken or cannot serve."""
    from tinyvllm.start.plugin_check import check_plugins

    verdicts = check_plugins(resolve(args), Kind(args.kind) if args.kind else None, args.name)
    rows = [(each.info.kind or "-", each.info.name, each.state, each.detail) for each in verdicts]
    print(aligned(("KIND", "NAME", "VERDICT", "DETAIL"), rows))
    return PluginError.exit_code if any(each.is_broken for each in verdicts) else 0
