"""Graphs of steps that compute prompts: which size a step is padded to, and what is recorded when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.device_runs import check, greedy, random_prompts, run, start
from tests.engine.test_device_engine import SMALL, device  # noqa: F401 -- a fixture
from tinyvllm.batch import Batch
from tinyvllm.runner.prompt_graphs import PromptGraphs, StepSize
from tinyvllm.workspace import StepLimits


class Recorder:
    """A device that notes what it is asked to queue."""

    def __init__(self) -> None:
        self.queued: list[str] = []
        self._recording: list[str] | None = None

    def queue(self, name: str) -> None:
        (self.queued if self._recording is None else self._recording).append(name)

    @contextmanager
    def capture(self) -> Iterator[Any]:
        recorded: list[str] = []
        self._recording = recorded
        yield type("Graph", (), {"replay": lambda _: self.queued.append(f"graph of {recorded}")})()
        self._recording = None


def graphs(recorder: Any, max_tokens: int = 8192, max_seqs: int = 256) -> PromptGraphs:
    return PromptGraphs(recorder, StepLimits(max_tokens, max_seqs, 8192, 16, 256, False))


@given(st.integers(1, 4096), st.integers(1, 300), st.integers(1, 4096), st.integers(1, 300), st.booleans())
def test_a_step_is_padded_by_little_and_within_the_limits(
    num_tokens: int, num_sequences: int, max_tokens: int, max_seqs: int, has_decodes: bool
) -> None:
    num_tokens, num_sequences = min(num_tokens, max_tokens), min(num_sequences, max_seqs)
    size = StepSize(num_tokens, num_sequences, has_decodes)
    padded = graphs(Recorder(), max_tokens, max_seqs).padded(size)
    if padded is None:
        assert num_tokens > 2048
        return
    assert num_tokens <= padded.num_tokens <= min(max_tokens, max(8, 2 * num_tokens, num_tokens + 63))
    assert padded.num_tokens <= 32 or padded.num_tokens < num_tokens + 64
    assert num_sequences <= padded.num_sequences <= min(max_seqs, 2 * num_sequences)
    assert padded.has_decodes == has_decodes
    assert graphs(Recorder(), max_tokens, max_seqs).padded(padded) == padded


def test_the_second_step_of_a_size_is_recorded_and_those_after_it_are_replays() -> None:
    recorder = Recorder()
    kept = graphs(recorder)
    for i in range(4):
        kept.run(StepSize(64, 1, False), lambda i=i: recorder.queue(f"step {i}"))  # type: ignore[misc]
        kept.run(StepSize(64, 1, True), lambda: recorder.queue("mixed")) if i == 0 else None
    assert recorder.queued == ["step 0", "mixed", "step 1", "graph of ['step 1']", "graph of ['step 1']"]


def test_sizes_that_have_not_come_for_long_are_forgotten() -> None:
    recorder = Recorder()
    kept = graphs(recorder)
    for i in range(1000):
        for size in (1, 2 + i // 2):
            kept.run(StepSize(size, 1, False), lambda size=size: recorder.queue(str(size)))  # type: ignore[misc]
    recorder.queued.clear()
    for size in (1, 2, 501):
        kept.run(StepSize(size, 1, False), lambda size=size: recorder.queue(str(size)))  # type: ignore[misc]
    assert recorder.queued == ["graph of ['1']", "2", "graph of ['501']"]


def test_the_size_of_a_batch_says_whether_it_holds_a_decode() -> None:
    def size_of(*counts: int) -> StepSize:
        empty, ends = np.zeros(0, np.int32), np.cumsum([0, *counts]).astype(np.int32)
        tokens, sequences = np.zeros(sum(counts), np.int32), np.zeros(len(counts), np.int32)
        return StepSize.of(Batch(tokens, tokens, ends, sequences, empty, tokens))

    assert size_of(5, 2) == StepSize(7, 2, False)
    assert size_of(5, 1) == StepSize(6, 2, True)
    assert (size_of(7), size_of(1)) == (StepSize(7, 1, False), StepSize(1, 1, True))


def test_prompts_of_about_one_length_share_a_graph_and_are_the_cpus_within_rounding(device: str) -> None:  # noqa: F811
    """Alone, and beside a sequence that decodes: two are launched, one is recorded, the others launch nothing."""
    llm = start(SMALL, device, scheduler={"max_num_seqs": 4})
    spied: Any = llm.device
    launch, num_launched = spied.launch, 0

    def counting(function: Any, *rest: Any, **more: Any) -> None:
        nonlocal num_launched
        num_launched += function.name == "attention_prefill"
        launch(function, *rest, **more)

    spied.launch = counting
    prompts = random_prompts(SMALL, (50, 61, 33, 40, 63, 55))
    for prompt in prompts:
        (output,) = run(llm, [prompt], [greedy(2)])
        check(SMALL, output, 2)
    assert num_launched == 3 * llm.shape.num_layers
    num_launched, counts = 0, (40, 1, 1, 1, 1, 1)
    outputs = run(llm, prompts, [greedy(count) for count in counts], [3] * len(prompts))
    for output, count in zip(outputs, counts, strict=True):
        check(SMALL, output, count)
    assert num_launched == 3 * llm.shape.num_layers
