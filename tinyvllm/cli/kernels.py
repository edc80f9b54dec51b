"""Name operations and who implements them; check kernels against their definitions; time them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from tinyvllm.cli.options import add_config_arguments, add_traceback_argument, resolve
from tinyvllm.cli.output_json import add_output_json_argument, check_output_json, write_output_json
from tinyvllm.cli.text_table import aligned
from tinyvllm.errors import ConfigError

if TYPE_CHECKING:
    from tinyvllm.testing import Outcome

_CHECK_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``kernels list``, ``kernels check`` and ``kernels bench``."""
    verbs = parser.add_subparsers(title="verbs", metavar="list | check | bench", required=True)
    lists = verbs.add_parser(
        "list", help="every op, who implements it on which device, and what fused ones are made of"
    )
    lists.add_argument("--op", help="only this op")
    _add_plugin(lists)
    lists.set_defaults(run=run_list)
    check = verbs.add_parser("check", help="property tests of an op against its NumPy definition")
    check.add_argument("op", metavar="NAME", help="the op, or attention")
    check.add_argument(
        "--device", choices=["cpu", "emulator", "cuda"], help="only there; default: each that is present"
    )
    check.add_argument("--cases", type=int, default=50, help="cases of each implementation on each device")
    sanitizer = check.add_mutually_exclusive_group()
    sanitizer.add_argument("--race", action="store_true", help="on the emulator under ThreadSanitizer")
    sanitizer.add_argument(
        "--sanitize", action="store_true", help="on the emulator under the address and undefined-behaviour sanitizers"
    )
    _add_implementation(check)
    check.set_defaults(run=run_check)
    bench = verbs.add_parser("bench", help="time, bytes, fraction of the measured bandwidth and matrix rate")
    bench.add_argument("op", metavar="NAME", help="the op")
    bench.add_argument("--model", help="whose sizes: demo, or a folder with a config.json")
    bench.add_argument("--device", help="cpu or cuda; default: as device: auto chooses")
    bench.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 256], help="tokens of a step")
    bench.add_argument("--context-len", type=int, default=1024, help="of each sequence, this step included")
    bench.add_argument("--implementation", help="a kernel plugin, or parts; default: each")
    add_output_json_argument(bench)
    add_config_arguments(bench)
    bench.set_defaults(run=run_bench)


def run_list(args: argparse.Namespace) -> int:
    """A line for each op and kind of device. Imports no accelerator's library."""
    from tinyvllm.ops.catalogue import OPS
    from tinyvllm.registry import Registry
    from tinyvllm.testing.subject import PARTS, implementations

    _check_op(args.op)
    registry = Registry(args.plugin)
    rows = []
    for op in OPS.values() if args.op is None else [OPS[args.op]]:
        found = {device: implementations(op.name, device, registry) for device in ("cpu", "emulator", "cuda")}
        for names in dict.fromkeys(map(tuple, found.values())):
            if names:
                devices = [device for device in found if tuple(found[device]) == names]
                parts = " + ".join(op.parts) or "-"
                who = ", ".join(name for name in names if name != PARTS) or PARTS
                rows.append((op.name, ", ".join(devices), who, parts, op.summary))
    print(aligned(("OP", "DEVICES", "IMPLEMENTATIONS", "MADE OF", "WHAT IT DOES"), rows))
    return 0


def run_check(args: argparse.Namespace) -> int:
    """A line for each implementation; 1 if one is wrong, and then on which input, and where."""
    if args.cases < 1:
        raise ConfigError(f"--cases must be at least 1, got {args.cases}")
    outcomes = _sanitized(args) if args.race or args.sanitize else _checked(args)
    rows = [
        (each.op, each.implementation, each.device, str(each.num_cases), "right" if each.is_right else "WRONG")
        for each in outcomes
    ]
    print(aligned(("OP", "IMPLEMENTATION", "DEVICE", "CASES", "VERDICT"), rows))
    for each in outcomes:
        if not each.is_right:
            print(f"\n{each.op} by {each.implementation} on {each.device}: WRONG: {each.failure}")
    return 0 if all(each.is_right for each in outcomes) else _CHECK_FAILED


def run_bench(args: argparse.Namespace) -> int:
    """A line for each implementation and number of rows."""
    from tinyvllm.bench.kernels import measure_kernels
    from tinyvllm.models import read_config
    from tinyvllm.start.devices import choose_device
    from tinyvllm.start.model_files import resolve_model

    _check_op(args.op)
    check_output_json(args.output_json)
    if min(args.rows) < 1 or args.context_len < 1:
        raise ConfigError("--rows and --context-len must be at least 1")
    resolved = resolve(args)
    config = resolved.config
    files = resolve_model(config.model, resolved.base)
    model = read_config(files.read_json("config.json") or {}, str(files.folder / "config.json")).shape
    device = choose_device(config.device).name
    machine, timings = measure_kernels(
        args.op,
        model,
        device=device,
        rows=args.rows,
        context_len=args.context_len,
        block_size=config.cache.block_size,
        batch_invariant=config.batch_invariant,
        implementation=args.implementation,
        plugins=[*config.plugins, *args.plugin],
    )
    print(f"{machine.name}: {machine.bandwidth / 1e9:.0f} GB/s, {machine.matrix_rate / 1e12:.2f} TFLOP/s")
    rows = [
        (
            each.op, each.implementation, str(each.num_rows), f"{each.us:.2f}", f"{each.megabytes:.3f}",
            f"{each.gigabytes_per_s:.0f}", f"{each.fraction_of_bandwidth:.2f}", f"{each.teraflops:.2f}",
            f"{each.fraction_of_matrix_rate:.2f}",
        )
        for each in timings
    ]  # fmt: skip
    print(aligned(("OP", "IMPLEMENTATION", "ROWS", "US", "MB", "GB/S", "OF BANDWIDTH", "TFLOP/S", "OF MATRIX"), rows))
    write_output_json(args.output_json, [asdict(each) for each in timings])
    return 0


def _checked(args: argparse.Namespace) -> list[Outcome]:
    from tinyvllm.testing import check_op

    return check_op(
        args.op, device=args.device, implementation=args.implementation, plugins=args.plugin, num_cases=args.cases
    )


def _sanitized(args: argparse.Namespace) -> list[Outcome]:
    from tinyvllm.devices.emulator.build import Sanitizer
    from tinyvllm.testing.sanitized import check_sanitized

    if args.device not in (None, "emulator"):
        raise ConfigError(f"--race and --sanitize run on the emulator, not on {args.device}")
    sanitizer = Sanitizer.RACE if args.race else Sanitizer.BOUNDS
    return check_sanitized(args.op, sanitizer, implementation=args.implementation, plugins=args.plugin)


def _check_op(name: str | None) -> None:
    from tinyvllm._nearest import did_you_mean
    from tinyvllm.ops.catalogue import OPS

    if name is not None and name not in OPS:
        raise ConfigError(f"there is no op {name!r}{did_you_mean(name, OPS) or ';'} the ops are {', '.join(OPS)}")


def _add_implementation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--implementation", help="a kernel plugin, or parts; default: each, or those of --plugin")
    _add_plugin(parser)


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", metavar="PLUGIN", action="append", default=[], help="a local plugin: ./file.py or package.module"
    )
    add_traceback_argument(parser)
