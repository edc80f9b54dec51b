"""Runs of whole engines on a device, and what the CPU and the oracle say to the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tinyvllm
from tests.engine.bf16_model import Model
from tests.engine.tiny import write_checkpoint
from tinyvllm import LLM, SamplingParams
from tinyvllm.outputs import RequestOutput

Float64 = NDArray[np.float64]
Prompt = tuple[int, ...]

MAX_MODEL_LEN = 192
_SIZES = {
    "hidden_size": 64,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
MODELS: dict[str, dict[str, Any]] = {
    "demo": {},
    "llama with biases": {"attention_bias": True, **_SIZES},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **_SIZES},
    "qwen3": {"model_type": "qwen3", **_SIZES},
    "mistral": {"model_type": "mistral", "sliding_window": 23, **_SIZES},
    "wide heads": {"head_dim": 80, "num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 200},
}
"""The shipped checkpoint, and small random ones for what it has not; most of one size, which compiles once."""


@cache
def folder_of(model: str) -> Path:
    """Where the checkpoint lies; made at first use."""
    if model == "demo":
        return Path(tinyvllm.__file__).parent / "demo"
    return write_checkpoint(Path(mkdtemp()) / "model", **MODELS[model])


@cache
def oracle(model: str) -> Model:
    return Model.read(folder_of(model))


def start(model: str, device: str, **sections: Any) -> LLM:
    """An engine; prompts are token ids."""
    settings: dict[str, Any] = {"max_model_len": MAX_MODEL_LEN, "skip_tokenizer_init": True, "dtype": "bfloat16"}
    return LLM(str(folder_of(model)), device=device, **(settings | sections))


@cache
def cpu(model: str) -> LLM:
    return start(model, "cpu")


def vocab_size(model: str) -> int:
    return cpu(model).shape.vocab_size


def random_prompts(model: str, lengths: Sequence[int], seed: int = 0) -> list[Prompt]:
    """Prompts of these lengths. To the demo checkpoint they say something, so that its answers are sharp."""
    rng = np.random.default_rng(seed)
    if model == "demo":
        story = demo_tokens()
        starts = rng.integers(0, len(story) - max(lengths), len(lengths))
        return [(0, *story[s : s + n - 1]) for s, n in zip(starts, lengths, strict=True)]
    return [tuple(int(t) for t in rng.integers(0, vocab_size(model), n)) for n in lengths]


@cache
def demo_tokens() -> tuple[int, ...]:
    """A few hundred tokens that the demo checkpoint has written itself."""
    llm = LLM("demo", device="cpu", max_model_len=512)
    output = llm.generate("Once upon a time", SamplingParams(temperature=1, seed=1, max_tokens=400, ignore_eos=True))[0]
    return (*output.prompt_token_ids[1:], *output.outputs[0].token_ids)


def greedy(max_tokens: int, **changes: Any) -> SamplingParams:
    """Every log-probability of prompt and continuation."""
    wanted = {"logprobs": -1, "prompt_logprobs": -1, "temperature": 0.0, **changes}
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, **wanted)


@dataclass(frozen=True)
class Expected:
    """What the CPU says to a prompt: its continuation, and ``[T, V]`` of prompt and continuation with their bounds."""

    tokens: list[int]
    rows: Float64
    bound: Float64


@cache
def expected(model: str, prompt: Prompt, max_tokens: int) -> Expected:
    output = cpu(model).generate({"prompt_token_ids": prompt}, greedy(max_tokens))[0]
    tokens = output.outputs[0].token_ids
    rows = table(output, vocab_size(model))
    bound = oracle(model).bound((*prompt, *tokens[:-1]))
    assert rows.shape == bound.shape
    return Expected(tokens, rows, bound)


def told(output: RequestOutput) -> list[dict[int, float]]:
    """Log-probabilities of the token after each of prompt and continuation; empty where they were not asked for."""
    completion = output.outputs[0]
    prompt = output.prompt_logprobs or (None,) * len(output.prompt_token_ids)
    parts = (*prompt[1:], *(completion.logprobs or (None,) * len(completion.token_ids)))
    return [{} if row is None else {token: each.logprob for token, each in row.items()} for row in parts]


def table(output: RequestOutput, vocab_size: int) -> Float64:
    """The same where all were asked for, ``[T, V]``."""
    return np.array([[row[token] for token in range(vocab_size)] for row in told(output)])


def check(model: str, output: RequestOutput, max_tokens: int) -> int:
    """The device agrees with the CPU; how many tokens of the continuation were compared.

    On the CPU's tokens every log-probability is within its bound. The first token that differs ends the comparison, and
    must be one that rounding may choose.
    """
    prompt = tuple(output.prompt_token_ids)
    want = expected(model, prompt, max_tokens)
    completion = output.outputs[0]
    assert len(completion.token_ids) == max_tokens, completion
    got = told(output)
    for i in range(max_tokens):
        at = len(prompt) - 1 + i
        _check_row(want, at, got[at])
        ours, theirs = completion.token_ids[i], want.tokens[i]
        if ours != theirs:
            margin, slack = want.rows[at, theirs] - want.rows[at, ours], want.bound[at, [ours, theirs]].sum()
            assert margin <= slack, f"token {i} is {ours}, not {theirs}: {margin:.3g} less likely, bound {slack:.3g}"
            break
    for at in range(len(prompt) - 1):
        _check_row(want, at, got[at])
    return i + 1


def _check_row(want: Expected, at: int, got: dict[int, float]) -> None:
    tokens = np.fromiter(got, np.intp, len(got))
    off = np.abs(np.fromiter(got.values(), np.float64, len(got)) - want.rows[at, tokens])
    bound = want.bound[at, tokens]
    bad = ~(off <= bound)
    assert not bad.any(), (
        f"after token {at}: {int(bad.sum())} of {len(got)} log-probabilities are off, "
        f"by up to {np.nanmax((off / bound)[bad], initial=0):.3g} times the bound"
    )


def run(
    llm: LLM, prompts: Sequence[Prompt], params: Sequence[SamplingParams], pauses: Sequence[int] = ()
) -> list[RequestOutput]:
    """Requests that arrive with so many steps in between; the engine is sound after each step."""
    outputs: dict[int, RequestOutput] = {}

    def step() -> None:
        outputs.update({int(delta.request_id): delta.output for delta in llm.engine.step() if delta.output})
        llm.engine.check()

    for i, (prompt, wanted) in enumerate(zip(prompts, params, strict=True)):
        llm.engine.add_request(str(i), list(prompt), wanted, stream=False)
        for _ in range(pauses[i] if pauses else 0):
            step()
    while llm.engine.has_unfinished_requests():
        step()
    return [outputs[i] for i in range(len(prompts))]


def bits(output: RequestOutput) -> tuple[list[int], list[dict[int, float]]]:
    """Tokens and log-probabilities, for comparisons to the bit."""
    return output.outputs[0].token_ids, told(output)
