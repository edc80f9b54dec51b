"""What is kept of the rows of a step is what the columns would give: the runner sees no difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.fake_runner import fake_engine
from tinyvllm.batch import ROW_COLUMNS
from tinyvllm.engine.engine import Engine
from tinyvllm.engine.step_launcher import StepLauncher
from tinyvllm.engine.step_rows import StepRows
from tinyvllm.interfaces import Schedule, SchedulerView
from tinyvllm.packing import pack
from tinyvllm.request import SamplingParams
from tinyvllm.step import Step


class TakesTurns:
    """One half of the decoding rows for a few steps, then the other, named in an array that it uses again.

    So the rows change though none comes or ends, and who compares with the array of the last step sees no difference.
    """

    def __init__(self) -> None:
        self._rows = np.zeros(64, np.int32)
        self._num_steps = 0

    def schedule(self, view: SchedulerView) -> Schedule:
        decision = pack(view, view.running, view.waiting)
        chosen, num_tokens, turn = decision.rows, decision.num_tokens, self._num_steps // 3 % 2
        self._num_steps += 1
        if len(chosen) > 1 and num_tokens.max() == 1 and not len(decision.preempt):
            half = len(chosen) // 2
            part = slice(half, 2 * half) if turn else slice(half)
            chosen, num_tokens = chosen[part], num_tokens[part]
        rows = self._rows[: len(chosen)]
        rows[:] = chosen
        return Schedule(rows, num_tokens, decision.preempt)


def values_of(step: Step) -> list[Any]:
    """Copies of all that a runner reads."""
    batch, sampling = step.batch, step.sampling
    num_blocks = -(-batch.context_lens // 4)
    tables = [row[:n].tolist() for row, n in zip(batch.block_tables, num_blocks.tolist(), strict=True)]
    plain = [batch.token_ids, batch.positions, batch.cu_seqlens_q, batch.context_lens, batch.slot_mapping]
    arrays = [
        *plain,
        step.sampled,
        step.offsets,
        step.sampled_rows,
        step.slots,
        *([getattr(sampling, name) for name in ROW_COLUMNS] if sampling else ()),
    ]
    started = step.started
    new = (
        []
        if started is None
        else [
            (slot, each.token_ids.tolist())
            for slot, each in zip(started.slots.tolist(), started.sequences, strict=True)
        ]
    )
    return [tables, new, *((array.dtype, array.tolist()) for array in arrays)]


def steps_of(engine: Engine, number: int) -> list[list[Any]]:
    """What the runner gets while random requests come and are aborted."""
    rng = np.random.default_rng(number)
    steps: list[list[Any]] = []
    launch = engine._runner.launch

    def noted(step: Step) -> Any:
        steps.append(values_of(step))
        return launch(step)

    engine._runner.launch = noted  # type: ignore[method-assign]
    for i in range(12):
        prompt = rng.integers(0, 90, int(rng.choice([1, 1, 7, 18]))).tolist()
        params = SamplingParams(
            max_tokens=int(rng.integers(1, 30)), n=int(rng.integers(1, 3)), top_k=i, ignore_eos=True
        )
        engine.add_request(str(i), prompt, params, stream=bool(rng.integers(2)))
        for _ in range(int(rng.integers(0, 12))):
            engine.step()
        if rng.integers(2):
            engine.abort_request(str(int(rng.integers(i + 1))))  # the next one gets its row
    while engine.has_unfinished_requests():
        engine.step()
    engine.check()
    return steps


@pytest.mark.parametrize("scheduler", ["continuous", "static", "turns"])
@pytest.mark.parametrize(("lag", "is_late"), [(0, False), (1, False), (1, True)])
@pytest.mark.parametrize("number", range(4))
def test_a_step_whose_rows_were_kept_is_the_step_that_is_gathered_anew(
    number: int, lag: int, is_late: bool, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine() -> Engine:
        chosen: Any = TakesTurns() if scheduler == "turns" else scheduler
        return fake_engine(chosen, num_blocks=24, lag=lag, is_late=is_late, num_preemptions=0)

    num_gathered = []
    gather = StepRows.gather.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, *arguments: Any) -> StepRows:
        num_gathered.append(1)
        return gather(cls, *arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(StepRows, "gather", classmethod(counted))
    kept = steps_of(engine(), number)
    assert len(num_gathered) < 0.8 * len(kept)
    monkeypatch.setattr(StepLauncher, "kept", None)
    num_gathered.clear()
    assert steps_of(engine(), number) == kept
    assert len(num_gathered) >= len(kept)
