"""The sampler ``default``: what it answers, row by row, and that rows do not touch one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tinyvllm.batch import NO_LOGPROBS, SampleCall, Sampled, SamplingRows
from tinyvllm.devices.cpu import CpuDevice
from tinyvllm.interfaces import API_VERSION, HostSampler, PluginContext, Sampler, SamplerContext, SamplerSpec
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.sequence import SequenceTokens
from tinyvllm.shapes import Float32, ModelShape
from tinyvllm.workspace import StepLimits, Workspace
from tinyvllm_samplers.default import register_samplers

INF = math.inf


@pytest.fixture
def sampler() -> HostSampler:
    (plugin,) = register_samplers()
    shape = ModelShape(1, 64, 1, 1, 64, 64, 512, 512)
    created = plugin.create(PluginContext(plugin.options(), "cpu", shape, 512, 8, 64, 16, False, 0))
    assert isinstance(created, Sampler)
    workspace = Workspace(CpuDevice(), StepLimits(64, 8, 512, 16, 8, batch_invariant=False))
    bound = created.bind(SamplerContext(SamplerSpec("cpu", 512), workspace))
    assert isinstance(bound, HostSampler)
    return bound


def sequence(
    params: SamplingParams, prompt: Any = (0,), output: Any = (), rules: SamplingRules | None = None
) -> SequenceTokens | None:
    if not params.has_rules:
        return None
    tokens = SequenceTokens.from_prompt(np.array(prompt, np.int32), params, rules or SamplingRules())
    for token in output:
        tokens.append(token)
    return tokens


def call(
    logits: Any,
    params: Sequence[SamplingParams],
    sequences: Sequence[SequenceTokens | None] | None = None,
    completion_index: Any = 0,
    position: Any = 7,
) -> SampleCall:
    def column(name: str, dtype: Any) -> Any:
        return np.array([getattr(p, name) for p in params], dtype)

    def numbered(value: Any) -> Any:
        return np.broadcast_to(np.asarray(value, np.int32), (len(params),)).copy()

    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    rows = SamplingRows(
        **{name: column(name, np.float32) for name in names},
        top_k=column("top_k", np.int32),
        seed=np.array([p.seed or 0 for p in params], np.uint64),
        completion_index=numbered(completion_index),
        position=numbered(position),
        num_logprobs=np.array([NO_LOGPROBS if p.logprobs is None else p.logprobs for p in params], np.int32),
        has_rules=column("has_rules", np.bool_),
    )
    array = np.array(logits, np.float32)
    array.setflags(write=False)
    return SampleCall(array, rows, sequences or [sequence(p) for p in params])


GREEDY = SamplingParams(temperature=0)


def greedy_choice(sampler: HostSampler, logits: list[float], params: SamplingParams, **history: Any) -> int | None:
    """The token of one row, or None if the row is corrupt."""
    answer = sampler.sample(call([logits], [params], [sequence(params, **history)]))
    return None if answer.is_corrupt is not None and answer.is_corrupt[0] else int(answer.token_ids[0])


def test_it_fills_its_socket() -> None:
    (plugin,) = register_samplers()
    assert (plugin.name, plugin.api_version) == ("default", API_VERSION)


def test_greedy_rows_take_the_largest_logit_and_the_lowest_id_of_equals(sampler: HostSampler) -> None:
    answer = sampler.sample(call([[0, 2, 1, 2], [5, 0, 0, 0], [-INF, -INF, -9, -INF]], [GREEDY] * 3))
    assert answer.token_ids.tolist() == [1, 0, 2]
    assert answer.token_ids.dtype == np.int32
    assert answer.logprobs is None
    assert answer.is_corrupt is None


@pytest.mark.parametrize(
    ("fields", "history", "expected"),
    [
        ({"logit_bias": {0: 5}}, {}, 0),
        ({"allowed_token_ids": [1, 2]}, {}, 2),
        ({"presence_penalty": 1.5}, {"output": [3]}, 2),
        ({"presence_penalty": 1.5}, {"prompt": [3]}, 3),
        ({"presence_penalty": 0.4}, {"output": [3, 3, 3]}, 3),
        ({"frequency_penalty": 0.4}, {"output": [3, 3, 3]}, 2),
        ({"frequency_penalty": 0.4}, {"prompt": [3, 3, 3]}, 3),
        ({"repetition_penalty": 2.0}, {"output": [3]}, 2),
        ({"repetition_penalty": 2.0}, {"prompt": [3]}, 2),
        ({"min_tokens": 2, "stop_token_ids": [2]}, {"output": [0], "rules": SamplingRules(eos_token_ids=(3,))}, 1),
        ({"min_tokens": 2}, {"output": [0, 0], "rules": SamplingRules(eos_token_ids=(3,))}, 3),
        ({"bad_words": ["x"]}, {"rules": SamplingRules(bad_words_token_ids=((3,),))}, 2),
        ({"bad_words": ["x"]}, {"output": [2], "rules": SamplingRules(bad_words_token_ids=((2, 3),))}, 2),
        ({"bad_words": ["x"]}, {"output": [1], "rules": SamplingRules(bad_words_token_ids=((2, 3),))}, 3),
        # The bias comes before the penalty: (1 + 3) / 2 = 2 stays below 2.5; (1 / 2) + 3 would not.
        ({"logit_bias": {1: 3.0}, "repetition_penalty": 2.0}, {"prompt": [1]}, 3),
    ],
    ids=str,
)
def test_greedy_rows_obey_their_rules(
    sampler: HostSampler, fields: dict[str, Any], history: dict[str, Any], expected: int
) -> None:
    assert greedy_choice(sampler, [0.5, 1.0, 2.0, 2.5], SamplingParams(temperature=0, **fields), **history) == expected


def test_a_row_that_may_choose_nothing_is_corrupt(sampler: HostSampler) -> None:
    params = SamplingParams(temperature=0, allowed_token_ids=[3], bad_words=["x"])
    history = {"rules": SamplingRules(bad_words_token_ids=((3,),))}
    assert greedy_choice(sampler, [0, 1, 2, 3], params, **history) is None


@pytest.mark.parametrize(
    "bad", [[1, math.nan, 0], [1, INF, 0], [-INF] * 3, [-INF, 0, math.nan], [-math.nan, 1, 1]], ids=str
)
@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    "rules", [{}, {"allowed_token_ids": [0]}, {"logit_bias": {1: 1}, "repetition_penalty": 2}], ids=str
)
def test_a_corrupt_row_is_reported_and_the_others_go_on(
    sampler: HostSampler, bad: list[float], temperature: float, rules: dict[str, Any]
) -> None:
    others = [SamplingParams(temperature=0), SamplingParams(seed=3), SamplingParams(top_p=0.5, logprobs=1)]
    params = [SamplingParams(temperature=temperature, **rules), *others]
    good = [[0, 1, 2], [3, 2, 1], [1, 1, 4]]
    with np.errstate(all="raise", under="ignore"):
        answer = sampler.sample(call([bad, *good], params))
    assert answer.is_corrupt is not None
    assert answer.is_corrupt.tolist() == [True, False, False, False]
    alone = sampler.sample(call(good, others))
    assert alone.is_corrupt is None
    assert answer.logprobs is not None
    assert alone.logprobs is not None
    np.testing.assert_array_equal(answer.token_ids[1:], alone.token_ids)
    np.testing.assert_array_equal(answer.logprobs.logprobs[1:], alone.logprobs.logprobs)


def test_logprobs_are_of_the_raw_logits_and_only_where_asked(sampler: HostSampler) -> None:
    logits = (np.random.default_rng(0).standard_normal((3, 20)) * 3).astype(np.float32)
    params = [
        SamplingParams(temperature=0, logprobs=2, logit_bias={7: 50}),
        SamplingParams(),
        SamplingParams(temperature=0.5, logprobs=5, top_k=3),
    ]
    answer = sampler.sample(call(logits, params))
    assert answer.token_ids[0] == 7
    assert answer.logprobs is not None
    expected = logprob_columns(logits, answer.token_ids, 5)
    for row in (0, 2):
        np.testing.assert_array_equal(answer.logprobs.token_ids[row], expected.token_ids[row])
        np.testing.assert_array_equal(answer.logprobs.logprobs[row], expected.logprobs[row])
        assert answer.logprobs.rank[row] == expected.rank[row]
    assert np.isnan(answer.logprobs.logprobs[1]).all()


@pytest.mark.parametrize(("asked", "width"), [([0, None], 1), ([0, 3], 4), ([-1, 2], 21), ([50, 0], 21)])
def test_logprob_columns_are_as_wide_as_the_row_that_asks_for_most(
    sampler: HostSampler, asked: list[int | None], width: int
) -> None:
    params = [SamplingParams(logprobs=k) for k in asked]
    answer = sampler.sample(call(np.zeros((2, 20)), params))
    assert answer.logprobs is not None
    assert answer.logprobs.token_ids.shape == (2, width)


def mixed_batch(
    rng: np.random.Generator, rows: int, vocab_size: int
) -> tuple[Float32, list[SamplingParams], list[SequenceTokens | None]]:
    choices: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.3, "logprobs": 4},
        {"temperature": 0.8},
        {"top_k": 5, "logprobs": 2},
        {"top_p": 0.9, "presence_penalty": 0.7},
        {"top_k": 40, "top_p": 0.95, "min_p": 0.01, "temperature": 1.4},
        {"min_p": 0.1, "bad_words": ["x"], "min_tokens": 12},
    ]
    params = [SamplingParams(seed=int(rng.integers(2**62)), **choices[row % len(choices)]) for row in range(rows)]
    rules = SamplingRules(eos_token_ids=(1,), bad_words_token_ids=((2,), (3, 4)))
    sequences = [sequence(p, rng.integers(0, vocab_size, 9), rng.integers(0, vocab_size, 5), rules) for p in params]
    return (rng.standard_normal((rows, vocab_size)) * 4).astype(np.float32), params, sequences


@pytest.mark.parametrize("vocab_size", [11, 512, 2000])
def test_a_rows_answer_does_not_depend_on_its_company(sampler: HostSampler, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    rows = 21
    logits, params, sequences = mixed_batch(rng, rows, vocab_size)
    position = rng.integers(0, 100, rows)

    def answer(pick: list[int]) -> Sampled:
        picked = call(logits[pick], [params[i] for i in pick], [sequences[i] for i in pick], 0, position[pick])
        return sampler.sample(picked)

    together = answer(list(range(rows)))
    shuffled = rng.permutation(np.concatenate([np.arange(rows), rng.integers(0, rows, 8)]))
    for order in [[row] for row in range(rows)] + [shuffled.tolist()]:
        other = answer(order)
        np.testing.assert_array_equal(other.token_ids, together.token_ids[order])
        for i, row in enumerate(order):
            if (k := params[row].logprobs) is not None:
                assert other.logprobs is not None
                assert together.logprobs is not None
                for field in ("token_ids", "logprobs"):
                    here, there = getattr(other.logprobs, field)[i], getattr(together.logprobs, field)[row]
                    np.testing.assert_array_equal(here[: k + 1], there[: k + 1])
                assert other.logprobs.rank[i] == together.logprobs.rank[row]


def test_completions_of_one_request_differ_and_repeat(sampler: HostSampler) -> None:
    params = [SamplingParams(seed=5)] * 8
    answers = [sampler.sample(call(np.zeros((8, 512)), params, completion_index=np.arange(8))) for _ in range(2)]
    assert len(set(answers[0].token_ids.tolist())) == 8
    np.testing.assert_array_equal(answers[0].token_ids, answers[1].token_ids)


def test_more_rows_than_announced_are_served(sampler: HostSampler) -> None:
    assert sampler.sample(call(np.eye(40), [GREEDY] * 40)).token_ids.tolist() == list(range(40))


def test_the_logits_are_left_as_they_were(sampler: HostSampler) -> None:
    asked = call(np.ones((2, 9)), [SamplingParams(logit_bias={1: 3}), SamplingParams(top_p=0.5)])
    sampler.sample(asked)  # the array is read-only, so writing would raise
    assert (asked.logits == 1).all()
