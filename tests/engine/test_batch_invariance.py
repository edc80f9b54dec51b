"""``batch_invariant: true``: bit-equal logits and equal tokens in any company; off: equal up to rounding.

Every log-probability of the vocabulary is compared at every step, so a difference in one bit of one logit shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.tiny import CONFIG, VOCAB_SIZE, write_checkpoint
from tinyvllm import LLM, SamplingParams
from tinyvllm.outputs import RequestOutput

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"model_type": "mistral", "sliding_window": 23},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 1},
}


@cache
def checkpoint(model: str) -> str:
    return str(write_checkpoint(Path(mkdtemp()) / model, **MODELS[model]))


def start(model: str, **sections: Any) -> LLM:
    return LLM(checkpoint(model), skip_tokenizer_init=True, device="cpu", max_model_len=160, **sections)


def params(seed: int | None, max_tokens: int, n: int = 1) -> SamplingParams:
    return SamplingParams(
        n=n,
        temperature=0.0 if seed is None else 0.9,
        top_p=1.0 if seed is None else 0.95,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=True,
        logprobs=-1,
        prompt_logprobs=-1,
    )


def told(output: RequestOutput, index: int = 0) -> tuple[list[int], bytes]:
    """The tokens of a completion, and the bits of all log-probabilities on the way to them."""
    completion = output.outputs[index]
    assert completion.logprobs is not None
    assert output.prompt_logprobs is not None
    rows = [row for row in (*output.prompt_logprobs, *completion.logprobs) if row is not None]
    table = [[row[token].logprob for token in range(VOCAB_SIZE)] for row in rows]
    return completion.token_ids, np.array(table, np.float32).tobytes()


@cache
def alone(model: str, prompt: tuple[int, ...], seed: int | None, max_tokens: int) -> tuple[list[int], bytes]:
    """What a request yields with nobody else there, the whole prompt in one step."""
    llm = start(model, batch_invariant=True)
    return told(llm.generate({"prompt_token_ids": prompt}, params(seed, max_tokens))[0])


def run_history(llm: LLM, requests: list[tuple[tuple[int, ...], SamplingParams]], pauses: list[int]) -> dict[int, Any]:
    """Requests arriving with so many steps in between; every output by index."""
    outputs: dict[int, Any] = {}

    def step() -> None:
        outputs.update({int(delta.request_id): delta.output for delta in llm.engine.step()})
        llm.engine.check()

    for i, ((prompt, wanted), pause) in enumerate(zip(requests, pauses, strict=True)):
        llm.engine.add_request(str(i), list(prompt), wanted, stream=False)
        for _ in range(pause):
            step()
    while llm.engine.has_unfinished_requests():
        step()
    return outputs


PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=90).map(tuple)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    model=st.sampled_from(sorted(MODELS)),
    requests=st.lists(
        st.tuples(PROMPTS, st.one_of(st.none(), st.integers(0, 2**64 - 1)), st.integers(1, 12), st.integers(0, 6)),
        min_size=1,
        max_size=5,
    ),
    scheduler=st.sampled_from(["static", "continuous"]),
    block_size=st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(1, 100),
    extra_blocks=st.integers(0, 3),
    lag=st.booleans(),
)
def test_a_request_has_the_same_bits_in_any_company(
    model: str,
    requests: list[tuple[tuple[int, ...], int | None, int, int]],
    scheduler: str,
    block_size: int,
    max_num_seqs: int,
    budget: int,
    extra_blocks: int,
    lag: bool,
) -> None:
    # Just room for the longest request and a little more, so that others are preempted and computed again.
    longest = max(-(-(len(prompt) + most) // block_size) for prompt, _, most, _ in requests)
    llm = start(
        model,
        batch_invariant=True,
        scheduler={
            "name": scheduler,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": budget,
            "async_scheduling": lag,
        },
        cache={"block_size": block_size, "num_blocks_override": longest + extra_blocks},
    )
    outputs = run_history(llm, [(p, params(s, m)) for p, s, m, _ in requests], [pause for *_, pause in requests])
    for i, (prompt, seed, most, _) in enumerate(requests):
        tokens, bits = alone(model, prompt, seed, most)
        got_tokens, got_bits = told(outputs[i])
        assert got_tokens == tokens
        assert got_bits == bits


def test_completions_of_one_request_share_its_bits() -> None:
    prompt = tuple(range(40))
    llm = start("llama", batch_invariant=True, cache={"block_size": 4})
    output = llm.generate({"prompt_token_ids": prompt}, params(7, 8, n=3))[0]
    assert told(output, 0) == alone("llama", prompt, 7, 8)
    assert len({tuple(c.token_ids) for c in output.outputs}) == 3  # own random streams
    shared = llm.engine.stats().peak_blocks_used
    separate = 3 * -(-(len(prompt) + 7) // 4)
    assert shared <= separate - 2 * ((len(prompt) - 1) // 4)  # two siblings hold the first's full prompt blocks


def rounding_bound() -> float:
    """How far log-probabilities may differ when sums are taken in another order, in float32.

    A dot product of length n errs by at most n * eps of the sum of magnitudes (Higham 2002, 3.1); on the random
    weights of the tiny model errors add like a random walk, sqrt(n) * eps a product. Each layer has four products
    in a row and the softmax two more; 16 is room for cancellation in residuals and for the head's gain.
    """
    longest = max(CONFIG["intermediate_size"], CONFIG["hidden_size"], 160)
    products = 6 * CONFIG["num_hidden_layers"] + 1
    return float(16 * products * np.sqrt(longest) * np.finfo(np.float32).eps)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    requests=st.lists(st.tuples(PROMPTS, st.integers(0, 4)), min_size=2, max_size=5),
    budget=st.integers(3, 100),
    block_size=st.sampled_from([4, 16]),
)
def test_without_batch_invariance_company_changes_rounding_only(
    requests: list[tuple[tuple[int, ...], int]], budget: int, block_size: int
) -> None:
    llm = start("llama", scheduler={"max_num_batched_tokens": budget}, cache={"block_size": block_size})
    # One token each: the log-probabilities of the prompt cannot be led astray by a near tie.
    wanted = replace(params(None, 1), logprobs=None)
    together = run_history(llm, [(p, wanted) for p, _ in requests], [pause for _, pause in requests])
    for i, (prompt, _) in enumerate(requests):
        single = start("llama").generate({"prompt_token_ids": prompt}, wanted)[0]
        for a, b in zip(single.prompt_logprobs or (), together[i].prompt_logprobs, strict=True):
            if a is not None:
                difference = max(abs(a[t].logprob - b[t].logprob) for t in range(VOCAB_SIZE))
                assert difference <= rounding_bound()


def test_the_fast_path_really_depends_on_company() -> None:
    """Else the promise of ``batch_invariant`` would be tested on something that holds anyway."""
    prompts = [{"prompt_token_ids": list(range(i, i + 50))} for i in range(5)]
    wanted = params(None, 4)
    together = [told(o)[1] for o in start("llama").generate(prompts, wanted)]
    separate = [told(start("llama").generate(p, wanted)[0])[1] for p in prompts]
    if together == separate:
        pytest.skip("this BLAS gives the same bits for these shapes; nothing to tell apart")


def _has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512f" in cpuinfo.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("core_type", ["Haswell", "Zen", "SkylakeX"])
def test_it_holds_for_the_blas_kernels_of_other_cpus(core_type: str) -> None:
    if core_type == "SkylakeX" and not _has_avx512():
        pytest.skip("this CPU has no AVX-512")
    test = f"{__file__}::{test_a_request_has_the_same_bits_in_any_company.__name__}"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        env={
            **os.environ,
            "OPENBLAS_CORETYPE": core_type,
            "OPENBLAS_NUM_THREADS": "2",  # as outside of tests, where a product may be shared between threads
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
