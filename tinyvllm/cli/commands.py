"""Every command: its module, a line about it, and examples that its help shows."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Protocol

from tinyvllm.cli import bench, chat, config, demo, doctor, generate, kernels, plugins, run


class CommandModule(Protocol):
    """What a module of a command has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Give the parser the command's arguments, and as ``run`` the function that carries the command out."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Attributes:
        module: takes its arguments and carries it out.
        summary: a line.
        examples: what may follow ``python -m tinyvllm``.
    """

    module: CommandModule
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "run": Command(
        run,
        "Do what a configuration file says; `python -m tinyvllm --config FILE` for short.",
        ("--config configs/quickstart.yaml", "run --config configs/quickstart.yaml --device cpu --max-tokens 20"),
    ),
    "generate": Command(
        generate,
        "Complete prompts given on the command line or on standard input.",
        (
            'generate "12+7=" "sort 31425=" --temperature 0',
            "generate --json < prompt.txt",
            'generate "Once upon a time" --max-tokens 100 --seed 7 --quiet',
        ),
    ),
    "chat": Command(
        chat,
        "Talk with a model, line by line.",
        ("chat", 'chat --model ./my-model --system "Be brief." --temperature 0.7'),
    ),
    "plugins": Command(
        plugins,
        "List plugins, or check what they can serve.",
        ("plugins list", "plugins check --kind scheduler --plugin ./mine.py"),
    ),
    "kernels": Command(
        kernels,
        "Name operations and who implements them; check kernels against their definitions; time them.",
        ("kernels list", "kernels check rms_norm --device emulator --race", "kernels bench rms_norm --rows 1 32"),
    ),
    "config": Command(
        config,
        "Show a configuration as it is resolved, or the schema of configuration files.",
        ("config show --set scheduler.max_num_seqs=4", "config schema > schema.json"),
    ),
    "doctor": Command(doctor, "Say what this machine has, and what will be used.", ("doctor",)),
    "demo": Command(
        demo,
        "Check the checkpoint that ships on held-out items, or print such items.",
        ("demo --verify --items 50", "demo --sample addition --items 3"),
    ),
    "bench": Command(
        bench,
        "Measure speed and accuracy: latency, throughput, prefill, accuracy, overhead, invariance, load.",
        (
            "bench latency --batch-size 1 8 --output-len 32",
            "bench throughput --num-prompts 32 --output-json found.json",
            "bench overhead --scheduler mine --plugin ./mine.py",
        ),
    ),
}
