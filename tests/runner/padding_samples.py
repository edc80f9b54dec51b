"""Steps of padding for a sanitizer, which runs them in a process of its own; see ``test_recording``."""

from __future__ import annotations

from typing import Any

from tests.engine.device_runs import start
from tests.runner.kinds import ALL_KINDS
from tinyvllm.device import Gpu
from tinyvllm.start import build
from tinyvllm.start.warm_up import record_common, rehearse


def run_padding(device: Gpu) -> None:
    """All that a card does before its first request, and steps of every kind of sampling; nothing was sent before."""
    own: Any = build
    own.open_device = lambda *_, **__: device
    llm = start("llama with biases", "emulator", scheduler={"max_num_seqs": 3, "max_num_batched_tokens": 20})
    runner: Any = llm.engine._runner
    rehearse(runner, runner._limits)
    record_common(runner, runner._limits)
    for kind in ALL_KINDS:
        for size in (1, 2, 3):
            runner.rehearse_decode(size, runner.kind_of(kind))
