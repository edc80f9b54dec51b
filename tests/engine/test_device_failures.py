"""A device's part of a step that raises once: its requests fail, and whoever gets their slots has own parameters, own
tokens and all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.device_runs import random_prompts, start
from tinyvllm import LLM, SamplingParams
from tinyvllm.devices.cuda import probe
from tinyvllm.errors import TinyvllmError
from tinyvllm.outputs import RequestOutput

SMALL = "llama with biases"
LENGTH = 6
PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True),
    "random": SamplingParams(temperature=1.5, seed=3, max_tokens=LENGTH, ignore_eos=True),
    "with rules": SamplingParams(
        temperature=0, repetition_penalty=3.0, presence_penalty=2.0, max_tokens=LENGTH, ignore_eos=True, min_tokens=2
    ),
    "on the host": SamplingParams(temperature=0.7, seed=5, logprobs=-1, max_tokens=LENGTH, ignore_eos=True),
}
# Where it raises: of the runner.
PLACES: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "computing a prompt": lambda runner: (runner, "_compute"),
    "sending a step": lambda runner: (runner._inputs, "upload_decode"),
    "taking parameters": lambda runner: (runner._tokens, "start"),
    "choosing tokens": lambda runner: (runner, "_queue_sampling"),
    "ending a step": lambda runner: (runner._tokens, "queue_end"),
    "after a step was queued": lambda runner: (runner, "_in_flight"),
    "counting its copy": lambda runner: (runner._tokens._on_host, "last"),
    "recording a graph": lambda runner: (runner, "_queue_decode"),
}

QUICK = [("taking parameters", 1), ("counting its copy", 3), ("recording a graph", 1)]


class RaisesOnce:
    """In place of a method: the call of that number raises."""

    def __init__(self, method: Any, number: int) -> None:
        self._method, self._left = method, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise ValueError("injected")
        return self._method(*arguments, **named)


@pytest.fixture(scope="module", params=["emulator", "cuda"])
def llm(request: pytest.FixtureRequest) -> LLM:
    if request.param == "cuda" and not probe().is_usable:
        pytest.skip("no NVIDIA card with driver and extra here")
    sizes = {"max_num_seqs": 2, "max_num_batched_tokens": 8}
    return start(SMALL, request.param, scheduler=sizes, max_model_len=48, cache={"num_blocks_override": 12})


@pytest.fixture(scope="module")
def expected(llm: LLM) -> dict[str, list[int]]:
    return {kind: tokens_of(llm, kind) for kind in PARAMS}


def tokens_of(llm: LLM, kind: str) -> list[int]:
    (prompt,) = random_prompts(SMALL, (11,), seed=list(PARAMS).index(kind))
    (output,) = llm.generate({"prompt_token_ids": prompt}, PARAMS[kind], use_tqdm=False)
    llm.engine.check()
    return output.outputs[0].token_ids


@pytest.mark.parametrize(
    ("place", "number"),
    [
        pytest.param(place, number, marks=[] if (place, number) in QUICK else pytest.mark.slow)
        for place in PLACES
        for number in (1, 3)
    ],
)
def test_a_failed_step_leaves_the_next_owner_of_its_slots_nothing(
    llm: LLM, expected: dict[str, list[int]], place: str, number: int
) -> None:
    engine: Any = llm.engine
    owner, name = PLACES[place](engine._runner)
    setattr(owner, name, RaisesOnce(getattr(owner, name), number))
    engine._runner._graphs.clear()
    kinds = list(PARAMS)
    prompts = [{"prompt_token_ids": random_prompts(SMALL, (11,), seed=i)[0]} for i in range(len(kinds))]
    try:
        for kind, prompt in zip(kinds, prompts, strict=True):
            engine.add_request(kind, prompt, PARAMS[kind], stream=False)
        finished: dict[str, RequestOutput] = {}
        num_raised = 0
        while engine.has_unfinished_requests():
            try:
                deltas = engine.step()
            except TinyvllmError:
                num_raised += 1
                deltas = []
            engine.check()
            finished |= {delta.request_id: delta.output for delta in deltas if delta.output}
    finally:
        delattr(owner, name)
    for kind in kinds:
        tokens = finished[kind].outputs[0].token_ids
        whole = expected[kind]
        assert tokens == (whole if finished[kind].error is None else whole[: len(tokens)]), kind
    assert num_raised <= 1
    assert (num_raised == 1) == any(output.error is not None for output in finished.values())
    assert {kind: tokens_of(llm, kind) for kind in kinds} == expected
