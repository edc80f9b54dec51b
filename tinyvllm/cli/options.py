"""Arguments that several commands share, and the configuration that they amount to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tinyvllm.config import Config, Resolved, Setting, config_from_mapping, load_config
from tinyvllm.request import SamplingParams

# Flag, type and help; the key is the flag with underscores.
_ENGINE_FLAGS = (
    ("--model", str, "'demo', a folder in Hugging Face layout, or org/name from the local cache"),
    ("--tokenizer", str, "folder of the tokenizer; default: the model's own"),
    ("--device", str, "auto, cpu, cuda or emulator"),
    ("--dtype", str, "auto, bfloat16, float16 or float32"),
    ("--max-model-len", int, "longest sequence, in tokens; default: the checkpoint's limit"),
)
_SAMPLING_FLAGS = (
    ("--max-tokens", int, "maximum number of tokens of a completion"),
    ("--temperature", float, "0 is greedy"),
    ("--top-p", float, "keep the most likely tokens that have this mass together"),
    ("--top-k", int, "keep this many most likely tokens; 0 keeps all"),
    ("--min-p", float, "keep tokens at least this likely, relative to the most likely one"),
    ("--seed", int, "of the random stream of each prompt"),
    ("--n", int, "completions of each prompt"),
)
_NEVER_OF_A_CHECKPOINT = ("--n", "--seed")


def add_config_arguments(parser: argparse.ArgumentParser, *, is_required: bool = False) -> None:
    """``--config``, ``--set``, ``--plugin`` and ``--traceback``."""
    parser.add_argument("--config", metavar="FILE", required=is_required, help="a YAML file")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override a key: scheduler.max_num_seqs=4"
    )
    parser.add_argument(
        "--plugin", metavar="PLUGIN", action="append", default=[], help="a local plugin: ./file.py or package.module"
    )
    add_traceback_argument(parser)


def add_traceback_argument(parser: argparse.ArgumentParser) -> None:
    """``--traceback``; ``main`` looks for it."""
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``--model`` and other keys that are often given by hand."""
    for flag, kind, text in _ENGINE_FLAGS:
        default = "demo" if flag == "--model" else Config.model_fields[_name(flag)].default
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(flag, type=kind, help=f"{text}{shown}")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """``--max-tokens``, ``--temperature`` and other fields of SamplingParams."""
    group = parser.add_argument_group("sampling (all other fields: --set run.sampling.FIELD=VALUE)")
    defaults = SamplingParams()
    for flag, kind, text in _SAMPLING_FLAGS:
        default = getattr(defaults, _name(flag))
        # A checkpoint may have its own in generation_config.json, except for seed and n.
        whose = "" if flag in _NEVER_OF_A_CHECKPOINT else " or the checkpoint's"
        shown = "" if default is None else f" (default: {default}{whose})"
        group.add_argument(flag, type=kind, help=f"{text}{shown}")
    group.add_argument("--stop", metavar="TEXT", action="append", help="end a completion here; may be repeated")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the end of the text")


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--quiet``."""
    group = parser.add_argument_group("results")
    group.add_argument("--json", action="store_true", help="a JSON line for each prompt, as its text ends")
    group.add_argument("--quiet", action="store_true", help="texts without their prompts, no progress and no table")


def resolve(args: argparse.Namespace, extra: Mapping[tuple[str, ...], Any] | None = None) -> Resolved:
    """The configuration of a command: its file if it has one, then ``--set``, then the flags that were given.

    Args:
        args: of a parser with the arguments above.
        extra: further values by key, from flags of the command's own.
    """
    settings: list[str | Setting] = list(args.set)
    for path, flag in _flags():
        value = getattr(args, _name(flag), None)
        if value is not None:
            settings.append(Setting(path, value, f"{flag} {value}"))
    settings += [Setting(path, value, "the command line") for path, value in (extra or {}).items()]
    if args.config is not None:
        return load_config(args.config, settings, args.plugin)
    return config_from_mapping({"model": "demo"}, source="default", overrides=settings, plugins=args.plugin)


def _flags() -> list[tuple[tuple[str, ...], str]]:
    """Each key that has a flag, and the flag."""
    sampling = [flag for flag, _, _ in _SAMPLING_FLAGS] + ["--stop", "--ignore-eos"]
    engine = [flag for flag, _, _ in _ENGINE_FLAGS]
    return [((_name(flag),), flag) for flag in engine] + [(("run", "sampling", _name(flag)), flag) for flag in sampling]


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
