"""Measure speed and accuracy: latency, throughput, prefill, accuracy, overhead, invariance, load."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tinyvllm.cli.bench_table import shown
from tinyvllm.cli.options import add_config_arguments, add_engine_arguments, add_traceback_argument, resolve
from tinyvllm.cli.output_json import add_output_json_argument, check_output_json, write_output_json
from tinyvllm.config import Resolved
from tinyvllm.errors import ConfigError

if TYPE_CHECKING:
    from tinyvllm.bench.peers import PeerSeries
    from tinyvllm.llm import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command a benchmark."""
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    latency = _add(verbs, "latency", _latency, "a batch of equal prompts, decoded step by step")
    latency.add_argument("--batch-size", type=int, nargs="+", default=[1], help="sequences; several: one run each")
    _add_lengths(latency, input_len=32, output_len=128)
    latency.add_argument("--repeats", type=int, default=5, help="runs after the warm-up; medians are printed")
    _add_peer(latency)
    throughput = _add(verbs, "throughput", _throughput, "many requests at once")
    throughput.add_argument("--workload", choices=["random", "offline256"], default="random", help="what is asked")
    throughput.add_argument("--num-prompts", type=int, default=64, help="requests of the random workload")
    _add_lengths(throughput, input_len=64, output_len=64)
    throughput.add_argument("--temperature", type=float, default=0.6, help="of the sampling")
    throughput.add_argument("--repeats", type=int, default=1, help="runs after the warm-up; medians are printed")
    _add_peer(throughput)
    prefill = _add(verbs, "prefill", _prefill, "one prompt by itself, until its first token")
    prefill.add_argument("--input-len", type=int, nargs="+", default=[128], help="prompt tokens; several: one run each")
    prefill.add_argument("--repeats", type=int, default=5, help="runs after the warm-up; medians are printed")
    accuracy = _add(verbs, "accuracy", _accuracy, "logits against transformers in float32; exit code 1 beyond a bound")
    accuracy.add_argument("--input-len", type=int, nargs="+", default=[1, 17, 128, 500], help="prompt tokens")
    accuracy.add_argument("--batch-size", type=int, nargs="+", default=[1, 8], help="sequences")
    accuracy.add_argument("--output-len", type=int, default=8, help="tokens that each generates")
    accuracy.add_argument("--peer", choices=["transformers"], default="transformers", help="who is the reference")
    invariance = _add(verbs, "invariance", _invariance, "the price of batch_invariant: decode steps with and without")
    invariance.add_argument("--batch-size", type=int, nargs="+", default=[1, 16], help="sequences")
    _add_lengths(invariance, input_len=32, output_len=64)
    invariance.add_argument("--repeats", type=int, default=5, help="runs of each after the warm-up")
    _add(verbs, "load", _load, "seconds and peak memory of loading a checkpoint")
    text = "scheduling, batching, bookkeeping and text a step, without a model"
    overhead = verbs.add_parser("overhead", help=text, description=text)
    overhead.set_defaults(benchmark=_overhead)
    add_traceback_argument(overhead)
    overhead.add_argument("--scheduler", default="continuous", help="which scheduler")
    overhead.add_argument("--num-seqs", type=int, nargs="+", default=[1, 64, 256], help="running sequences")
    overhead.add_argument("--context-len", type=int, nargs="+", default=[100, 8000], help="tokens of each")
    overhead.add_argument("--num-steps", type=int, default=300, help="steps that are measured")
    overhead.add_argument(
        "--plugin", metavar="PLUGIN", action="append", default=[], help="a local plugin: ./file.py or package.module"
    )
    add_output_json_argument(overhead)


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark and print its table; 1 if it checks something that does not hold."""
    check_output_json(arguments.output_json)
    results = arguments.benchmark(arguments)
    print(shown(results))
    for result in results:
        for peer in result.get("peers", ()):
            if peer["error"] is not None:
                print(f"peer {peer['peer']} failed: {peer['error']}")
    write_output_json(arguments.output_json, results)
    return int(any(result.get("broken") for result in results))


def _add(verbs: Any, name: str, benchmark: Callable[..., Any], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    add_config_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--load-format", help="dummy: random weights from config.json alone")
    add_output_json_argument(parser)
    parser.set_defaults(benchmark=benchmark)
    return parser


def _add_peer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--peer",
        choices=["transformers", "torch-loop"],
        nargs="+",
        default=[],
        help="who does the same work in turn with us, on the same weights",
    )


def _add_lengths(parser: argparse.ArgumentParser, *, input_len: int, output_len: int) -> None:
    parser.add_argument("--input-len", type=int, default=input_len, help="prompt tokens of each sequence")
    parser.add_argument("--output-len", type=int, default=output_len, help="tokens that each generates, at least 2")


def _latency(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from tinyvllm.bench.latency import measure_latency
    from tinyvllm.bench.roofline import measure
    from tinyvllm.llm import LLM

    config = _fit_batches(arguments)
    llm = LLM.from_config(config)
    peers = _open_peers(arguments, config, llm)
    machine = measure(llm.device)
    return [
        asdict(
            measure_latency(
                llm,
                machine,
                batch_size=batch_size,
                input_len=arguments.input_len,
                output_len=arguments.output_len,
                repeats=arguments.repeats,
                peers=peers,
            )
        )
        for batch_size in arguments.batch_size
    ]


def _throughput(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from tinyvllm.bench.roofline import measure
    from tinyvllm.bench.throughput import measure_throughput
    from tinyvllm.bench.workload import OFFLINE_LONGEST, OFFLINE_NUM_SEQS, offline_jobs, uniform_jobs
    from tinyvllm.llm import LLM

    _check_lengths(arguments)
    if arguments.workload == "offline256":
        _prefer(arguments, "scheduler.max_num_seqs", OFFLINE_NUM_SEQS)
        if arguments.max_model_len is None:
            _prefer(arguments, "max_model_len", 2 * OFFLINE_LONGEST)
    config = _resolved(arguments)
    llm = LLM.from_config(config)
    if arguments.workload == "offline256":
        jobs = offline_jobs(llm.shape.vocab_size)
    else:
        jobs = uniform_jobs(
            llm.shape.vocab_size, arguments.num_prompts, arguments.input_len, arguments.output_len, seed=0
        )
    peers = _open_peers(arguments, config, llm)
    return [
        asdict(
            measure_throughput(
                llm,
                measure(llm.device),
                jobs,
                temperature=arguments.temperature,
                repeats=arguments.repeats,
                peers=peers,
            )
        )
    ]


def _prefill(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from tinyvllm.bench.prefill import measure_prefill
    from tinyvllm.bench.roofline import measure
    from tinyvllm.llm import LLM

    longest = max(arguments.input_len)
    if min(arguments.input_len) < 1 or arguments.repeats < 1:
        raise ConfigError("--input-len and --repeats must be at least 1")
    # The whole prompt in one step.
    _prefer(arguments, "scheduler.max_num_batched_tokens", longest)
    if arguments.max_model_len is None:
        _prefer(arguments, "max_model_len", longest + 1)
    llm = LLM.from_config(_resolved(arguments))
    machine = measure(llm.device)
    return [asdict(measure_prefill(llm, machine, each, repeats=arguments.repeats)) for each in arguments.input_len]


def _accuracy(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from tinyvllm.bench.accuracy import (
        Recorded,
        TransformersReference,
        measure_accuracy,
        measure_company,
        measure_greedy,
        prompts_of,
    )
    from tinyvllm.bench.peers import torch_device_of
    from tinyvllm.bench.peers.recorder import NAME
    from tinyvllm.bench.peers.source import weight_source
    from tinyvllm.llm import LLM

    if min(*arguments.input_len, *arguments.batch_size, arguments.output_len) < 1:
        raise ConfigError("--input-len, --batch-size and --output-len must be at least 1")
    lens, output_len = arguments.input_len, arguments.output_len
    _prefer(arguments, "scheduler.max_num_seqs", max(*arguments.batch_size, 2 * len(lens)))
    if arguments.max_model_len is None:
        _prefer(arguments, "max_model_len", max(lens) + output_len + 3)
    usual = _resolved(arguments)
    arguments.plugin.append("tinyvllm.bench.peers.recorder")
    with TemporaryDirectory() as folder:
        sampler = {"name": NAME, "folder": folder}
        config = _resolved(arguments, sampler=sampler)
        recorded = Recorded(LLM.from_config(config), Path(folder))
        device = recorded.llm.device
        source = weight_source(config, recorded.llm)
        dtype = source.config.dtype if config.config.dtype == "auto" else config.config.dtype
        reference = TransformersReference(source, torch_device=torch_device_of(device), weight_dtype=dtype)
        results = measure_accuracy(
            recorded, reference, input_lens=lens, batch_sizes=arguments.batch_size, output_len=output_len
        )
        results.append(measure_company(recorded, input_lens=lens, output_len=output_len))
        answers = recorded.answers(prompts_of(recorded.llm.shape.vocab_size, lens, seed=100), output_len)
        del recorded  # one engine at a time
        results.append(measure_greedy(answers, LLM.from_config(usual), reference))
        invariant = _resolved(arguments, sampler=sampler, batch_invariant=True)
        recorded = Recorded(LLM.from_config(invariant), Path(folder))
        results.append(measure_company(recorded, input_lens=lens, output_len=output_len))
    return [asdict(result) for result in results]


def _invariance(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from tinyvllm.bench.invariance import measure_invariance

    return [
        asdict(each)
        for each in measure_invariance(
            _fit_batches(arguments),
            _resolved(arguments, batch_invariant=True),
            batch_sizes=arguments.batch_size,
            input_len=arguments.input_len,
            output_len=arguments.output_len,
            repeats=arguments.repeats,
        )
    ]


def _load(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from tinyvllm.bench.load import measure_load

    return [asdict(measure_load(_resolved(arguments))[0])]


def _overhead(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from tinyvllm.bench.overhead import measure_overhead

    if min(*arguments.num_seqs, *arguments.context_len, arguments.num_steps) < 1:
        raise ConfigError("--num-seqs, --context-len and --num-steps must be at least 1")
    return [
        asdict(measure_overhead(arguments.scheduler, num_seqs, context_len, arguments.num_steps, arguments.plugin))
        for num_seqs in arguments.num_seqs
        for context_len in arguments.context_len
    ]


def _prefer(arguments: argparse.Namespace, key: str, value: int) -> None:
    """A value before all of ``--set``, so that theirs wins."""
    arguments.set.insert(0, f"{key}={value}")


def _open_peers(arguments: argparse.Namespace, config: Resolved, llm: LLM) -> list[PeerSeries]:
    from tinyvllm.bench.peers import PeerSeries, torch_device_of
    from tinyvllm.bench.peers.source import weight_source

    if not arguments.peer:
        return []
    source = weight_source(config, llm)
    return [PeerSeries(name, source, torch_device=torch_device_of(llm.device)) for name in arguments.peer]


def _resolved(arguments: argparse.Namespace, **more: Any) -> Resolved:
    extra = {"skip_tokenizer_init": True, **more}
    if arguments.load_format is not None:
        extra["load_format"] = arguments.load_format
    return resolve(arguments, {(name,): value for name, value in extra.items()})


def _fit_batches(arguments: argparse.Namespace) -> Resolved:
    """The configuration with what batches and lengths need, unless the command line says otherwise."""
    _check_lengths(arguments)
    _prefer(arguments, "scheduler.max_num_seqs", max(arguments.batch_size))
    if arguments.max_model_len is None:
        _prefer(arguments, "max_model_len", arguments.input_len + arguments.output_len)
    config = _resolved(arguments)
    if config.config.scheduler.max_num_seqs < max(arguments.batch_size):
        raise ConfigError(
            f"--batch-size {max(arguments.batch_size)} is more than scheduler.max_num_seqs, "
            f"which is {config.config.scheduler.max_num_seqs}; raise that"
        )
    return config


def _check_lengths(arguments: argparse.Namespace) -> None:
    for name, minimum in (("input_len", 1), ("output_len", 2), ("num_prompts", 1), ("repeats", 1)):
        value = getattr(arguments, name, minimum)
        if value < minimum:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {minimum}, got {value}")
