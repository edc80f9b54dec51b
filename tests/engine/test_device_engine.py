"""The whole engine on a device against the CPU: launch code, grids, strides, graphs and buffers.

On the emulator always, on the GPU where there is one. Log-probabilities must agree within what rounding to bfloat16 may
do, which ``bf16_model`` computes; tokens wherever the most likely two are further apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.bf16_model import Model
from tests.engine.device_runs import (
    MODELS,
    Prompt,
    bits,
    check,
    expected,
    greedy,
    oracle,
    random_prompts,
    run,
    start,
)
from tinyvllm import LLM, SamplingParams
from tinyvllm.devices.cuda import probe
from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.outputs import OutputAssembler
from tinyvllm.reference.philox import gumbel

# One of the random models is enough for what depends on the engine alone; the demo checkpoint takes longer.
SMALL = "llama with biases"
SMALL_AND_DEMO = [SMALL, pytest.param("demo", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=["emulator", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not probe().is_usable:
        pytest.skip("no NVIDIA card with driver and extra here")
    name: str = request.param
    return name


def test_the_first_request_alone_is_answered_right(device: str) -> None:
    """Its block table is block 0, as a table that was never uploaded would be."""
    llm = LLM("demo", device=device, max_model_len=64)
    assert llm.generate(["12+7="], SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].text == "19"


@pytest.mark.parametrize("model", [*list(MODELS)[:-1], pytest.param("wide heads", marks=pytest.mark.slow)])
def test_prompts_chunks_and_mixed_steps_are_the_cpus_within_rounding(device: str, model: str) -> None:
    """A prompt of several chunks beside sequences that decode, and one that joins them."""
    prompts = random_prompts(model, (5, 50, 17))
    llm = start(model, device, scheduler={"max_num_seqs": 4, "max_num_batched_tokens": 16})
    outputs = run(llm, prompts, [greedy(n) for n in (9, 5, 7)], (2, 3, 0))
    num_compared = sum(check(model, output, n) for output, n in zip(outputs, (9, 5, 7), strict=True))
    assert num_compared >= (21 if model == "demo" else 9)


@pytest.mark.parametrize("model", ["mistral", pytest.param("demo", marks=pytest.mark.slow)])
def test_a_prompt_token_by_token_is_the_cpus_within_rounding(device: str, model: str) -> None:
    """Teacher-forced through the kernels of a decode step: the budget is one token."""
    (prompt,) = random_prompts(model, (40,), seed=1)
    llm = start(model, device, scheduler={"max_num_seqs": 1, "max_num_batched_tokens": 1})
    (output,) = run(llm, [prompt], [greedy(2)])
    check(model, output, 2)


def test_a_decode_step_is_one_small_copy_and_tables_go_up_whole_only_for_other_sequences(device: str) -> None:
    """Three sequences, two of which end before the third; blocks of eight tokens, so that the tables grow on."""
    llm = start(SMALL, device, cache={"block_size": 8}, scheduler={"max_num_seqs": 4})
    assert llm.device is not None
    memory: Any = llm.device.memory
    copies: list[dict[str, list[int]]] = []  # of each step: numbers of each copy

    def noted(name: str) -> Any:
        send = getattr(memory, name)

        def note(buffer: Any, array: Any) -> None:
            copies[-1].setdefault(name, []).append(array.size)
            send(buffer, array)

        return note

    memory.upload, memory.upload_corner = noted("upload"), noted("upload_corner")
    prompts, lengths = random_prompts(SMALL, (5, 9, 17)), (30, 12, 20)
    for _ in range(2):  # graphs are recorded in the first round
        copies.clear()
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            llm.engine.add_request(str(i), list(prompt), greedy(length, logprobs=2, prompt_logprobs=None))
        finished, assembler = dict[str, Any](), OutputAssembler()
        while llm.engine.has_unfinished_requests():
            copies.append({})
            finished |= {output.request_id: output for output in assembler.add(llm.engine.step())}
        for i, length in enumerate(lengths):
            check(SMALL, finished[str(i)], length)
    decodes = copies[1 : max(lengths)]  # the first step computes the prompts, the last call reads back alone
    of_others = [1 + i for i, step in enumerate(decodes) if "upload_corner" in step]
    assert of_others == [lengths[1], lengths[2]], copies
    assert all(len(step["upload"]) == 1 for step in decodes), copies
    plain = min(step["upload"][0] for step in decodes)
    assert plain < 600
    num_new = [(step["upload"][0] - plain) / 3 for step in decodes]  # entries of block tables; three numbers each
    ends = [np.arange(n, n + length) for n, length in zip((5, 9, 17), lengths, strict=True)]
    # A sequence of n tokens takes a block when it computes the first token that no block holds.
    is_first = [[position % 8 == 0 for position in each[:-1]] for each in ends]
    expected_new = [sum(each[i] for each in is_first if i < len(each)) for i in range(len(decodes))]
    assert num_new == [0 if 1 + i in of_others else n for i, n in enumerate(expected_new)], copies


def faults(model: str) -> dict[str, dict[str, Any]]:
    window = {"config": {**oracle(model).config, "sliding_window": 24}} if model == "mistral" else {}
    return {
        "adjacent pairs": {"adjacent_pairs": True},
        "no scale": {"scale_factor": oracle(model).config["head_dim"] ** 0.5},
        "queries one position late": {"shift": 1},
        **({"a window of one more": window} if window else {}),
    }


@pytest.mark.parametrize("model", ["demo", "mistral"])
def test_the_bound_would_notice(model: str) -> None:
    """The oracle is the CPU's model; each typical fault in it is far out of bounds, on many tokens."""
    (prompt,) = random_prompts(model, (60,), seed=2)
    want = expected(model, prompt, 1)
    right = oracle(model)
    np.testing.assert_array_less(np.abs(right.logprobs(prompt) - want.rows), 2e-3 * want.bound + 1e-4)
    for name, changes in faults(model).items():
        wrong = Model(**{"config": right.config, "weights": right.weights, **changes})
        is_beyond = np.abs(wrong.logprobs(prompt) - want.rows) > want.bound
        assert is_beyond.any(axis=1).mean() > 0.3, name


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("model", SMALL_AND_DEMO)
def test_eager_and_graphs_give_the_same_bits(device: str, model: str, batch_invariant: bool) -> None:
    prompts = random_prompts(model, (5, 30, 17), seed=3)
    wanted = [greedy(6, logprobs=5, prompt_logprobs=None), greedy(9, logprobs=None, prompt_logprobs=None), greedy(4)]
    told = []
    for enforce_eager in (False, True):
        llm = start(model, device, enforce_eager=enforce_eager, batch_invariant=batch_invariant)
        told.append([bits(output) for output in run(llm, prompts, wanted, (1, 1, 0))])
    assert told[0] == told[1]


@pytest.mark.parametrize("model", ["qwen3", pytest.param("demo", marks=pytest.mark.slow)])
def test_batch_invariant_bits_are_the_same_alone_and_in_company(device: str, model: str) -> None:
    prompts = random_prompts(model, (5, 70, 17, 33), seed=4)
    scheduler = {"max_num_seqs": 4, "max_num_batched_tokens": 24}
    llm = start(model, device, batch_invariant=True, scheduler=scheduler, cache={"block_size": 8})
    together = run(llm, prompts, [greedy(n) for n in (12, 5, 7, 3)], (1, 2, 1, 0))
    for prompt, output in zip(prompts, together, strict=True):
        alone = start(model, device, batch_invariant=True, cache={"block_size": 16})
        (single,) = run(alone, [prompt], [greedy(len(output.outputs[0].token_ids))])
        assert bits(single) == bits(output)
    check(model, together[0], 12)


@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize("model", SMALL_AND_DEMO)
def test_what_was_preempted_goes_on_as_if_it_had_not_been(device: str, model: str, lag: bool) -> None:
    prompts, wanted = random_prompts(model, (20, 30, 25), seed=5), [greedy(20, prompt_logprobs=None)] * 3
    told = []
    for num_blocks in (20, 8):
        llm = start(
            model, device, batch_invariant=True, cache={"block_size": 8, "num_blocks_override": num_blocks},
            scheduler={"max_num_seqs": 3, "async_scheduling": lag},
        )  # fmt: skip
        told.append([bits(output) for output in run(llm, prompts, wanted)])
        assert bool(llm.engine.stats().num_preemptions) == (num_blocks == 8)
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "params", [{"top_k": 5}, {"presence_penalty": 1.5, "repetition_penalty": 1.3}, {"n": 2}], ids=["cut", "rules", "n"]
)
def test_one_step_ahead_gives_the_tokens_of_the_synchronous_loop(device: str, params: dict[str, Any]) -> None:
    prompts = random_prompts(SMALL, (20, 3, 11), seed=6)
    wanted = [SamplingParams(temperature=t, seed=9, max_tokens=9, logprobs=2, **params) for t in (0.0, 0.8, 1.5)]
    told = []
    for lag in (False, True):
        # The numbers of rows differ at the ends of sequences, and rounding with them.
        scheduler = {"max_num_seqs": 6, "async_scheduling": lag}
        outputs = run(start(SMALL, device, batch_invariant=True, scheduler=scheduler), prompts, wanted)
        told.append([[(c.token_ids, c.finish_reason, c.logprobs) for c in output.outputs] for output in outputs])
    assert told[0] == told[1]


def seeded(
    prompt: Prompt, tokens: Sequence[int], logits: np.ndarray[Any, Any], bound: Any, params: SamplingParams
) -> int:
    """Each token is the winner of its race, unless rounding may have chosen another; how many were certain."""
    certain = 0
    seed = np.array([params.seed], np.uint64)
    for i, token in enumerate(tokens):
        at = len(prompt) - 1 + i
        x, out = logits[at].copy(), np.bincount(tokens[:i], minlength=len(logits[at]))
        slack = bound[at] * max(params.repetition_penalty, 1 / params.repetition_penalty)
        seen = (out > 0) | (np.bincount(prompt, minlength=len(x)) > 0)
        x[seen] = np.where(x > 0, x / params.repetition_penalty, x * params.repetition_penalty)[seen]
        x -= params.frequency_penalty * out + params.presence_penalty * (out > 0)
        for biased, by in (params.logit_bias or {}).items():
            x[biased] += by
        score = x / params.temperature
        score += gumbel(seed, np.zeros(1, np.int32), np.array([at + 1], np.int32), len(x))[0]
        slack = slack / params.temperature + 1e-5
        rivals = np.flatnonzero(score + slack >= (score - slack).max())
        assert token in rivals, f"token {i} is {token}, expected one of {rivals}"
        certain += len(rivals) == 1
    return certain


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({}, id="plain"),
        pytest.param(
            {"presence_penalty": 0.7, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
            id="penalties",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"logit_bias": {30: 2.0, 31: -3.0}, "repetition_penalty": 0.8}, id="biases", marks=pytest.mark.slow
        ),
    ],
)
def test_seeded_tokens_win_the_references_race(device: str, params: dict[str, Any]) -> None:
    prompts = random_prompts("demo", (20, 3, 11), seed=7)
    wanted = [
        SamplingParams(temperature=t, seed=s, max_tokens=12, ignore_eos=True, **params)
        for t, s in ((0.8, 1), (1.0, 2**63 + 5), (1.5, 3))
    ]
    llm = start("demo", device, scheduler={"max_num_seqs": 3})
    certain = 0
    for prompt, output, each in zip(prompts, run(llm, prompts, wanted, (1, 3, 0)), wanted, strict=True):
        tokens = output.outputs[0].token_ids
        context = (*prompt, *tokens[:-1])
        certain += seeded(prompt, tokens, oracle("demo").logits(context), oracle("demo").bound(context), each)
    assert certain >= 24


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_kernel_and_every_number_of_rows_takes_part(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty sequences that end one after the other: steps of every number of rows, all within rounding."""
    launched, tiers = set(), set()
    launch, compiled = EmulatorDevice.launch, EmulatorDevice.compile

    def record_launch(self: EmulatorDevice, function: Any, *arguments: Any, **options: Any) -> None:
        launched.add(function.name)
        launch(self, function, *arguments, **options)

    def record_compile(self: EmulatorDevice, source: Path, defines: Any = None) -> Any:
        tiers.add((defines or {}).get("BATCH_ROWS"))
        return compiled(self, source, defines)

    monkeypatch.setattr(EmulatorDevice, "launch", record_launch)
    monkeypatch.setattr(EmulatorDevice, "compile", record_compile)
    lengths = [1 + 7 * i % 60 for i in range(40)]
    counts = [*(1 + 5 * i % 23 for i in range(39)), 40]  # the last is alone in the end
    prompts = random_prompts(model, lengths, seed=8)
    wanted = [greedy(n, logprobs=(-1, 5, None)[i % 3], prompt_logprobs=(None, -1)[i % 2]) for i, n in enumerate(counts)]
    wanted[7] = SamplingParams(top_p=0.9, max_tokens=counts[7], frequency_penalty=0.1, ignore_eos=True)
    llm = start(model, "emulator", scheduler={"max_num_seqs": 40, "max_num_batched_tokens": 64})
    outputs = run(llm, prompts, wanted)
    num_compared = sum(check(model, outputs[i], n) for i, n in enumerate(counts) if i != 7)
    assert num_compared >= (0.9 if model == "demo" else 0.15) * sum(counts), num_compared
    assert {1, 8, 16} <= tiers
    needed = {
        "embedding", "rms_norm", "rope_append", "silu_mul", "linear_residual", "gate_up_silu", "attention_decode",
        "attention_prefill", "lm_head_logits",
    } | ({"linear"} if "q_norm" in "".join(oracle(model).weights) else {"qkv_rope_append"})  # fmt: skip
    assert needed <= launched, f"{sorted(needed - launched)} did not run; {sorted(launched)} did"


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    model=st.sampled_from(sorted(MODELS)),
    requests=st.lists(
        st.tuples(st.integers(1, 90), st.integers(1, 12), st.integers(0, 6), st.integers(0, 2**16)),
        min_size=1,
        max_size=6,
    ),
    block_size=st.sampled_from([8, 16, 32, 64]),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(1, 100),
    extra_blocks=st.integers(0, 3),
    scheduler=st.sampled_from(["static", "continuous"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_history_is_the_cpus_within_rounding(
    model: str, requests: list[tuple[int, int, int, int]], block_size: int, max_num_seqs: int, budget: int,
    extra_blocks: int, scheduler: str, flags: tuple[bool, bool, bool],
) -> None:  # fmt: skip
    lag, enforce_eager, batch_invariant = flags
    longest = max(-(-(length + most) // block_size) for length, most, *_ in requests)
    llm = start(
        model, "emulator", enforce_eager=enforce_eager, batch_invariant=batch_invariant,
        cache={"block_size": block_size, "num_blocks_override": longest + extra_blocks},
        scheduler={
            "name": scheduler, "max_num_seqs": max_num_seqs, "max_num_batched_tokens": budget, "async_scheduling": lag,
        },
    )  # fmt: skip
    prompts = [random_prompts(model, (length,), seed)[0] for length, _, _, seed in requests]
    outputs = run(llm, prompts, [greedy(most) for _, most, *_ in requests], [pause for _, _, pause, _ in requests])
    for output, (_, most, *_) in zip(outputs, requests, strict=True):
        check(model, output, most)
