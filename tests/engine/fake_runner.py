"""A runner without a model: its KV cache holds token ids, so that whatever reads a wrong block is seen at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvllm.batch import Sampled
from tinyvllm.engine.admission import Admission
from tinyvllm.engine.blocks import BlockManager
from tinyvllm.engine.engine import Engine
from tinyvllm.engine.runner import Done, Pending, Step, StepResult
from tinyvllm.engine.table import SequenceTable
from tinyvllm.interfaces import Kind, PluginContext, Scheduler
from tinyvllm.plugin_call import PluginName
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import ModelShape
from tinyvllm_schedulers.continuous import ContinuousScheduler
from tinyvllm_schedulers.static import StaticScheduler

VOCAB_SIZE = 97
EOS = 96
SCHEDULERS: dict[str, Any] = {"continuous": ContinuousScheduler, "static": StaticScheduler}


def next_token(tokens: list[int]) -> int:
    """A made-up model: any change in any token of the context changes what follows."""
    value = 0
    for position, token in enumerate(tokens):
        value = (value * 31 + token * (position + 1) + 7) % 1_000_003
    return value % VOCAB_SIZE


def complete(prompt: list[int], most_output: int) -> tuple[list[int], str]:
    """What a request must yield, without any engine."""
    output: list[int] = []
    while len(output) < most_output:
        output.append(next_token(prompt + output))
        if output[-1] == EOS:
            return output, "stop"
    return output, "length"


@dataclass(frozen=True)
class Late:
    """A step whose tokens the host sees only when it waits for them, as those of a device."""

    result: StepResult
    is_done: bool = False

    def wait(self) -> StepResult:
        return self.result


class FakeRunner:
    """Writes token ids where keys would go, reads whole contexts through the block tables, and continues them.

    With ``is_late`` it keeps what it chose to itself until it is asked, as a device does, and cannot do so for
    requests with a penalty. It keeps block tables as a device does, and holds them against the step's.
    """

    def __init__(self, num_blocks: int, block_size: int, *, is_late: bool = False) -> None:
        self._stored = np.full(num_blocks * block_size, -1, np.int64)
        self._block_size, self._is_late = block_size, is_late
        self._newest: dict[int, int] = {}  # by slot
        self._tables = np.zeros((0, 0), np.int32)

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        return not (self._is_late and params.presence_penalty)

    def launch(self, step: Step) -> Pending:
        batch = step.batch
        self._follow(step)
        assert len(np.unique(batch.slot_mapping)) == batch.num_tokens, "two tokens go to one slot"
        assert self._is_late or (batch.token_ids >= 0).all()
        token_ids = [self._newest[-1 - t] if t < 0 else t for t in batch.token_ids.tolist()]
        self._stored[batch.slot_mapping] = token_ids
        chosen = []
        for b, tokens in zip(step.sampled.tolist(), step.tokens, strict=True):
            positions = np.arange(batch.context_lens[b])
            slots = batch.block_tables[b, positions // self._block_size] * self._block_size
            seen = self._stored[slots + positions % self._block_size].tolist()
            known = tokens.all.tolist()
            assert len(seen) - len(known) in ((0, 1) if self._is_late else (0,))
            assert seen[: len(known)] == known, "the cache does not hold the sequence's tokens"
            chosen.append(next_token(seen))
        self._newest |= dict(zip(step.slots.tolist(), chosen, strict=True))
        result = StepResult(Sampled(np.array(chosen, np.int32)) if chosen else None, ())
        can_be_late = all(self.can_run_ahead(tokens.params, tokens.rules) for tokens in step.tokens)
        return Late(result) if self._is_late and chosen and can_be_late else Done(result)

    def _follow(self, step: Step) -> None:
        """Keeps block tables of its own, as a device does, and holds them against the step's."""
        tables, updates = step.batch.block_tables, step.table_updates
        if updates is None:
            self._tables = np.zeros((tables.shape[0], 64), np.int32)
            self._tables[:, : tables.shape[1]] = tables
        else:
            self._tables[updates.rows, updates.columns] = updates.blocks
        for b, length in enumerate(step.batch.context_lens.tolist()):
            count = -(-length // self._block_size)
            assert np.array_equal(self._tables[b, :count], tables[b, :count]), "an update of a block table is missing"

    def recover(self) -> None:
        self._newest.clear()  # nobody may count on them


def fake_engine(
    scheduler: str | Scheduler = "continuous",
    *,
    num_blocks: int = 32,
    block_size: int = 4,
    max_num_seqs: int = 4,
    budget: int = 16,
    max_model_len: int = 64,
    lag: int = 0,
    is_late: bool = False,
) -> Engine:
    """A real engine around a :class:`FakeRunner`."""
    shape = ModelShape(1, 8, 1, 1, 8, 8, VOCAB_SIZE, max_model_len)
    context = PluginContext(None, "cpu", shape, max_model_len, max_num_seqs, budget, block_size, num_blocks, False, 0)
    table = SequenceTable(
        BlockManager(num_blocks),
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_blocks=-(-max_model_len // block_size),
        budget=budget,
    )
    admission = Admission(
        tokenizer=None,
        vocab_size=VOCAB_SIZE,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=block_size,
        eos_token_ids=(EOS,),
        default_params=SamplingParams(),
        seed=0,
    )
    chosen: Scheduler = SCHEDULERS[scheduler](context) if isinstance(scheduler, str) else scheduler
    return Engine(
        table=table,
        runner=FakeRunner(num_blocks, block_size, is_late=is_late),
        scheduler=chosen,
        scheduler_name=PluginName(Kind.SCHEDULER, scheduler if isinstance(scheduler, str) else "under test"),
        admission=admission,
        lag=lag,
    )
