"""``bench overhead``: what scheduling, batching, bookkeeping and text cost a step, with a model that does nothing."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median

import numpy as np

from tinyvllm.batch import Sampled
from tinyvllm.engine.admission import Admission
from tinyvllm.engine.blocks import BlockManager
from tinyvllm.engine.engine import Engine
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.interfaces import Kind, PluginContext
from tinyvllm.registry import Registry
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import ModelShape
from tinyvllm.step import Done, Pending, Step, StepResult
from tinyvllm.text.tokenizer import Tokenizer

_BLOCK_SIZE = 16
_NUM_WARM_UP_STEPS = 50
_EOS = 0  # the model never gives it
_TEXT = "Once upon a time there was a little dog who lived in a big house. She liked to play in the garden."


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """CPU time of the engine's thread, without that of the model that does nothing; medians over the steps.

    Attributes:
        scheduler: its name.
        num_running: sequences that decode.
        context_len: of each, at the start.
        us_per_step: where no sequence streams.
        us_per_step_streaming: where all of them do, text included.
        us_per_stream: what a sequence that streams adds to a step.
    """

    scheduler: str
    num_running: int
    context_len: int
    us_per_step: float
    us_per_step_streaming: float
    us_per_stream: float


class _NoModel:
    """Gives every sequence the same token, at once.

    Attributes:
        launch_s: CPU seconds that this has taken.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.launch_s = 0.0
        self._token_ids = token_ids
        self._num_steps = 0

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        return True

    def launch(self, step: Step) -> Pending:
        began = time.thread_time()
        token_id = self._token_ids[self._num_steps % len(self._token_ids)]
        self._num_steps += 1
        sampled = None if step.sampling is None else Sampled(np.full(len(step.sampled), token_id, np.int32))
        pending = Done(StepResult(sampled, ()))
        self.launch_s += time.thread_time() - began
        return pending

    def recover(self) -> None:
        """A step leaves nothing behind."""


def measure_overhead(
    scheduler: str, num_running: int, context_len: int, num_steps: int, plugins: Sequence[str] = ()
) -> OverheadResult:
    """The median cost of a decode step of ``num_running`` sequences under a scheduler, maybe one of ``plugins``."""
    plain, streaming = (
        _Decoding(scheduler, num_running, context_len, num_steps, plugins, stream=stream) for stream in (False, True)
    )
    gc.collect()
    gc.freeze()  # what the process has loaded is no part of a step's garbage
    for _ in range(num_steps):  # in turn, so that whatever else the machine does slows both
        plain.step()
        streaming.step()
    gc.unfreeze()
    per_step, per_step_streaming = plain.us_per_step, streaming.us_per_step
    per_stream = (per_step_streaming - per_step) / num_running
    return OverheadResult(scheduler, num_running, context_len, per_step, per_step_streaming, per_stream)


class _Decoding:
    """An engine in which all sequences decode, and what its steps cost."""

    def __init__(
        self,
        scheduler: str,
        num_running: int,
        context_len: int,
        num_steps: int,
        plugins: Sequence[str],
        *,
        stream: bool,
    ) -> None:
        tokenizer, max_tokens = _demo_tokenizer(), num_steps + 2 * _NUM_WARM_UP_STEPS
        self._costs_s: list[float] = []
        self._runner = _NoModel(tokenizer.encode(_TEXT, add_special_tokens=False))
        self._engine = _engine(scheduler, num_running, context_len + max_tokens, plugins, self._runner, tokenizer)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        for i in range(num_running):
            self._engine.add_request(str(i), [3] * context_len, params, stream=stream)
        while self._engine.stats().num_generation_tokens < num_running * _NUM_WARM_UP_STEPS:
            self._engine.step()

    def step(self) -> None:
        """One step, with its cost."""
        began, launch_s = time.thread_time(), self._runner.launch_s
        self._engine.step()
        self._costs_s.append(time.thread_time() - began - (self._runner.launch_s - launch_s))

    @property
    def us_per_step(self) -> float:
        """The median."""
        return 1e6 * median(self._costs_s)


@cache
def _demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(Path(str(files("tinyvllm"))) / "demo")


def _engine(
    scheduler: str,
    num_running: int,
    max_model_len: int,
    plugins: Sequence[str],
    runner: _NoModel,
    tokenizer: Tokenizer,
) -> Engine:
    num_blocks = num_running * -(-max_model_len // _BLOCK_SIZE)
    budget = num_running * max_model_len
    shape = ModelShape(1, 8, 1, 1, 8, 8, tokenizer.vocab_size, max_model_len)
    registry = Registry(plugins)
    options = registry.get(Kind.SCHEDULER, scheduler).options()
    context = PluginContext(options, "cpu", shape, max_model_len, num_running, budget, _BLOCK_SIZE, False, 0)
    return Engine(
        table=SequenceTable(
            BlockManager(num_blocks),
            block_size=_BLOCK_SIZE,
            max_num_seqs=num_running,
            max_blocks=-(-max_model_len // _BLOCK_SIZE),
            budget=budget,
        ),
        runner=runner,
        scheduler=registry.create(Kind.SCHEDULER, scheduler, context),
        scheduler_name=registry.named(Kind.SCHEDULER, scheduler),
        admission=Admission(
            tokenizer=tokenizer,
            vocab_size=shape.vocab_size,
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            block_size=_BLOCK_SIZE,
            eos_token_ids=(_EOS,),
            default_params=SamplingParams(),
            seed=0,
        ),
    )
