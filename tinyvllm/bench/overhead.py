"""``bench overhead``: what scheduling, batching and bookkeeping cost a step, with a model that does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

_BLOCK_SIZE = 16
_WARM_UP_STEPS = 50


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """Medians over the steps.

    Attributes:
        scheduler: its name.
        num_running: sequences that decode.
        context_len: of each, at the start.
        us_per_step: outside model and sampler.
    """

    scheduler: str
    num_running: int
    context_len: int
    us_per_step: float


class _NoModel:
    """Says the same token for everybody, at once."""

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        return True

    def launch(self, step: Step) -> Pending:
        sampled = None if step.sampling is None else Sampled(np.full(len(step.sampled), 5, np.int32))
        return Done(StepResult(sampled, ()))

    def recover(self) -> None:
        """A step leaves nothing behind."""


def measure_overhead(
    scheduler: str, num_running: int, context_len: int, num_steps: int, plugins: Sequence[str] = ()
) -> OverheadResult:
    """The median cost of a decode step of ``num_running`` sequences under a scheduler, maybe one of ``plugins``."""
    engine = _engine(scheduler, num_running, context_len + num_steps + 2 * _WARM_UP_STEPS, plugins)
    params = SamplingParams(temperature=0.0, max_tokens=num_steps + 2 * _WARM_UP_STEPS, ignore_eos=True)
    for i in range(num_running):
        engine.add_request(str(i), [3] * context_len, params, stream=False)
    while engine.stats().num_generation_tokens < num_running * _WARM_UP_STEPS:
        engine.step()
    costs = []
    for _ in range(num_steps):
        before = engine.stats().schedule_s
        engine.step()
        costs.append(engine.stats().schedule_s - before)
    return OverheadResult(scheduler, num_running, context_len, 1e6 * median(costs))


def _engine(scheduler: str, num_running: int, max_model_len: int, plugins: Sequence[str]) -> Engine:
    num_blocks = num_running * -(-max_model_len // _BLOCK_SIZE)
    budget = num_running * max_model_len
    shape = ModelShape(1, 8, 1, 1, 8, 8, 64, max_model_len)
    registry = Registry(plugins)
    options = registry.get(Kind.SCHEDULER, scheduler).options()
    context = PluginContext(
        options, "cpu", shape, max_model_len, num_running, budget, _BLOCK_SIZE, num_blocks, False, 0
    )
    return Engine(
        table=SequenceTable(
            BlockManager(num_blocks),
            block_size=_BLOCK_SIZE,
            max_num_seqs=num_running,
            max_blocks=-(-max_model_len // _BLOCK_SIZE),
            budget=budget,
        ),
        runner=_NoModel(),
        scheduler=registry.create(Kind.SCHEDULER, scheduler, context),
        scheduler_name=registry.named(Kind.SCHEDULER, scheduler),
        admission=Admission(
            tokenizer=None,
            vocab_size=shape.vocab_size,
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            block_size=_BLOCK_SIZE,
            eos_token_ids=(),
            default_params=SamplingParams(),
            seed=0,
        ),
    )
