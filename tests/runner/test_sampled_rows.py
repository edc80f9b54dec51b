"""Rows that are sampled are pairs of a sequence and one of the tokens that it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tinyvllm import LLM, SamplingParams
from tinyvllm.step import Pending, Step, StepResult

PROMPTS = ([5, 9, 40, 7, 2, 61], [30], [8, 3, 77])


def after_every_token(step: Step) -> Step:
    """The same step, sampled after each token rather than after the last of each sequence."""
    assert step.sampling is not None
    counts = np.diff(step.batch.cu_seqlens_q)
    sequences = np.repeat(np.arange(len(counts)), counts)
    offsets = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return replace(
        step, sampled=sequences, offsets=offsets, slots=step.slots[sequences], sampling=step.sampling.take(sequences)
    )


def test_sampling_after_every_token_of_prompts_is_sampling_after_each_prefix_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = LLM("demo", batch_invariant=True, max_model_len=64)
    runner: Any = llm.engine._runner
    launch, results, rows = runner.launch, list[StepResult](), list[Any]()

    def launched(step: Step) -> Pending:
        if not results:
            every = after_every_token(step)
            rows.append((step.sampled_rows, every.sampled_rows))
            results.append(launch(every).wait())
        pending: Pending = launch(step)
        return pending

    params = SamplingParams(temperature=0, max_tokens=1)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "launch", launched)
        outputs = llm.generate([*PROMPTS], params)
    last, every = rows[0]
    assert last.dtype == every.dtype == np.int32
    assert last.tolist() == [5, 6, 9]
    assert every.tolist() == [*range(10)]
    sampled = results[0].sampled
    assert sampled is not None
    prefixes = [prompt[: end + 1] for prompt in PROMPTS for end in range(len(prompt))]
    alone = [llm.generate([prefix], params)[0].outputs[0].token_ids[0] for prefix in prefixes]
    assert sampled.token_ids.tolist() == alone
    assert len(set(alone)) > 3
    assert sampled.token_ids[last].tolist() == [output.outputs[0].token_ids[0] for output in outputs]
