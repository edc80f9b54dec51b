"""What a sampler may not answer, and what is said of it; the engine goes on with the next request."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.fake_runner import VOCAB_SIZE, complete, continuation, fake_engine
from tinyvllm.batch import NO_LOGPROBS, LogprobColumns, SampleCall, Sampled
from tinyvllm.errors import PluginError
from tinyvllm.llm import LLM
from tinyvllm.outputs import OutputAssembler
from tinyvllm.reference.logprobs import logprob_columns
from tinyvllm.request import SamplingParams
from tinyvllm.sequence import SequenceTokens

NUM_ROWS = 2
K = 2  # log-probabilities that the rows ask for


def right(call: SampleCall) -> Sampled:
    """The most likely tokens."""
    ids = call.logits.argmax(axis=-1).astype(np.int32)
    most = int(call.rows.num_logprobs.max())
    return Sampled(ids, None if most == NO_LOGPROBS else logprob_columns(call.logits, ids, most))


def ids_as(change: Callable[[np.ndarray], Any]) -> Callable[[SampleCall], Any]:
    return lambda call: replace(right(call), token_ids=change(right(call).token_ids))


def columns_as(**changes: Callable[[np.ndarray], Any]) -> Callable[[SampleCall], Any]:
    def answer(call: SampleCall) -> Sampled:
        columns = right(call).logprobs
        assert columns is not None
        changed = {name: change(getattr(columns, name).copy()) for name, change in changes.items()}
        return replace(right(call), logprobs=replace(columns, **changed))

    return answer


def put(value: Any, *place: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


def corrupt_as(value: Any) -> Callable[[SampleCall], Any]:
    return lambda call: replace(right(call), is_corrupt=value)


def failing(error: BaseException) -> Callable[[SampleCall], Any]:
    def sample(call: SampleCall) -> Any:
        raise error

    return sample


def first_tokens(call: SampleCall) -> SequenceTokens:
    assert call.tokens[0] is not None
    return call.tokens[0]


def writing(what: Callable[[SampleCall], np.ndarray]) -> Callable[[SampleCall], Any]:
    def sample(call: SampleCall) -> Any:
        what(call)[...] = 0

    return sample


IDS = f"; expected int32 of shape ({NUM_ROWS},), one token a row"
RANGE = f"; expected a token of 0 to {VOCAB_SIZE - 1}"
WIDE = f"shape ({NUM_ROWS}, {1 + K} or more)"
READ_ONLY = "raised ValueError: assignment destination is read-only"
WRONG: dict[str, tuple[Callable[[SampleCall], Any], str]] = {
    "nothing": (lambda call: None, f"None; expected Sampled(token_ids), token_ids int32 of shape ({NUM_ROWS},)"),
    "ids alone": (lambda call: right(call).token_ids, f"int32 of shape ({NUM_ROWS},); expected Sampled(token_ids)"),
    "a list": (lambda call: right(call).token_ids.tolist(), "a list; expected Sampled(token_ids)"),
    "a string": (lambda call: "tokens", "a str; expected Sampled(token_ids)"),
    "the class": (lambda call: Sampled, "a type; expected Sampled(token_ids)"),
    "no ids": (ids_as(lambda ids: None), f"token_ids None{IDS}"),
    "ids in a list": (ids_as(lambda ids: ids.tolist()), f"token_ids a list{IDS}"),
    "ids of floats": (ids_as(lambda ids: ids + 0.0), f"token_ids float64 of shape (2,){IDS}"),
    "ids of bools": (ids_as(lambda ids: ids > 0), f"token_ids bool of shape (2,){IDS}"),
    "ids of strings": (ids_as(lambda ids: ids.astype(str)), f"token_ids <U11 of shape (2,){IDS}"),
    "ids of objects": (ids_as(lambda ids: ids.astype(object)), f"token_ids object of shape (2,){IDS}"),
    "probabilities": (
        ids_as(lambda ids: np.zeros((2, VOCAB_SIZE), np.int32)),
        f"int32 of shape (2, {VOCAB_SIZE}){IDS}",
    ),
    "a column": (ids_as(lambda ids: ids[:, None]), f"token_ids int32 of shape (2, 1){IDS}"),
    "one token for all": (ids_as(lambda ids: ids[0]), f"token_ids a int32{IDS}"),
    "a row too few": (ids_as(lambda ids: ids[:1]), f"token_ids int32 of shape (1,){IDS}"),
    "a row too many": (ids_as(lambda ids: np.repeat(ids, 2)), f"token_ids int32 of shape (4,){IDS}"),
    "the size of the vocabulary": (ids_as(put(VOCAB_SIZE, 1)), f"token {VOCAB_SIZE} for row 1{RANGE}"),
    "a negative token": (ids_as(put(-1, 0)), f"token -1 for row 0{RANGE}"),
    "a token that wraps around": (ids_as(lambda ids: ids.astype(np.int64) + 2**32), f"for row 0{RANGE}"),
    "an unsigned token": (ids_as(lambda ids: np.full(2, 2**64 - 1, np.uint64)), f"token {2**64 - 1} for row 0{RANGE}"),
    "is_corrupt of ints": (corrupt_as(np.zeros(2, np.int32)), "is_corrupt int32 of shape (2,); expected None or bool"),
    "is_corrupt in a list": (corrupt_as([False, False]), "is_corrupt a list; expected None or bool of shape (2,)"),
    "is_corrupt of another length": (corrupt_as(np.zeros(3, bool)), "is_corrupt bool of shape (3,); expected None or"),
    "is_corrupt for all": (corrupt_as(False), "is_corrupt a bool; expected None or bool of shape (2,)"),
    "no logprobs": (
        lambda call: Sampled(right(call).token_ids),
        "logprobs None; expected LogprobColumns, as a row",
    ),
    "logprobs of another type": (
        lambda call: replace(right(call), logprobs=np.zeros((2, 3))),  # type: ignore[arg-type]
        "logprobs float64 of shape (2, 3); expected LogprobColumns",
    ),
    "logprobs for one row": (
        columns_as(token_ids=lambda x: x[:1]),
        f"logprobs.token_ids int32 of shape (1, 3); expected int32 of {WIDE}",
    ),
    "logprobs too narrow": (
        columns_as(token_ids=lambda x: x[:, :2]),
        f"logprobs.token_ids int32 of shape (2, 2); expected int32 of {WIDE}",
    ),
    "logprobs of int64 tokens": (
        columns_as(token_ids=lambda x: x.astype(np.int64)),
        "logprobs.token_ids int64 of",
    ),
    "logprobs of float64": (
        columns_as(logprobs=lambda x: x.astype(np.float64)),
        f"logprobs.logprobs float64 of shape (2, 3); expected float32 of {WIDE}",
    ),
    "ranks of floats": (columns_as(rank=lambda x: x + 0.5), "logprobs.rank float64 of shape (2,); expected int32 of"),
    "ranks of two dimensions": (columns_as(rank=lambda x: x[:, None]), "logprobs.rank int32 of shape (2, 1); expected"),
    "more values than tokens": (
        columns_as(logprobs=lambda x: np.concatenate([x, x], axis=1)),
        "logprobs of (2, 3) token_ids and (2, 6) values; expected equal shapes",
    ),
    "logprobs of no token": (columns_as(token_ids=put(VOCAB_SIZE, 1, 2)), "logprobs of a token outside the vocabulary"),
    "logprobs of another token": (
        columns_as(token_ids=lambda x: np.roll(x, 1, axis=1)),
        "logprobs that begin with token",
    ),
    "rank 0": (columns_as(rank=put(0, 1)), f"rank 0 for row 1; expected a rank of 1 to {VOCAB_SIZE}"),
    "a rank beyond the vocabulary": (columns_as(rank=put(VOCAB_SIZE + 1, 0)), f"rank {VOCAB_SIZE + 1} for row 0"),
    "NaN": (columns_as(logprobs=put(np.nan, 0, 1)), "log-probability nan for row 0; expected numbers of at most 0"),
    "a probability": (columns_as(logprobs=np.exp), "log-probability 0.6"),
    "the least likely first": (
        columns_as(token_ids=lambda x: x[:, [0, 2, 1]], logprobs=lambda x: x[:, [0, 2, 1]]),
        "logprobs of row 0 out of order; expected the most likely token first, after column 0",
    ),
    "KeyError": (failing(KeyError("x")), "raised KeyError: 'x'"),
    "MemoryError": (failing(MemoryError()), "raised MemoryError"),
    "an error of tinyvllm's": (failing(PluginError("mine")), "raised PluginError: mine"),
    "an exit": (lambda call: sys.exit(3), "raised SystemExit: 3"),
    "a closed generator": (failing(GeneratorExit()), "raised GeneratorExit"),
    "the wrong arity": (lambda: None, "raised TypeError"),  # type: ignore[dict-item,misc]
    "writing to the logits": (writing(lambda call: call.logits), READ_ONLY),
    "writing to the parameters": (writing(lambda call: call.rows.temperature), READ_ONLY),
    "writing to the seeds": (writing(lambda call: call.rows.seed), READ_ONLY),
    "writing to the positions": (writing(lambda call: call.rows.position), READ_ONLY),
    "writing to the tokens": (writing(lambda call: first_tokens(call).all), READ_ONLY),
    "writing to the prompt": (writing(lambda call: first_tokens(call).prompt), READ_ONLY),
}


class ErrsOnce:
    """A good sampler, but for one answer."""

    def __init__(self, answer: Callable[[SampleCall], Any], num_good: int) -> None:
        self._answer, self._left = answer, num_good

    def sample(self, call: SampleCall) -> Any:
        self._left -= 1
        return self._answer(call) if self._left == -1 else right(call)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("num_good", [0, 2])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_is_named_and_the_engine_goes_on(case: str, num_good: int, lag: int) -> None:
    answer, message = WRONG[case]
    engine = fake_engine(lag=lag, sampler=ErrsOnce(answer, num_good))
    # The penalty changes nothing here, but a sampler is given the tokens of such rows alone.
    params = SamplingParams(max_tokens=5, logprobs=K, ignore_eos=True, frequency_penalty=0.5)
    prompts = {"alice": [5, 3], "bob": [7, 1]}
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, params, stream=False)
    for _ in range(num_good):
        engine.step()
    with pytest.raises(PluginError) as raised:
        engine.step()
    engine.check()
    prefix = "sampler 'under test': sample " + ("" if message.startswith("raised") else "returned ")
    assert str(raised.value).startswith(prefix)
    assert message in str(raised.value)
    outputs = {output.request_id: output for output in OutputAssembler().add(engine.step())}
    for name, prompt in prompts.items():
        assert outputs[name].error is raised.value
        assert outputs[name].outputs[0].token_ids == continuation(prompt, 5)[: num_good - (lag if num_good else 0)]
    engine.add_request("next", [2, 2], params)
    deltas = []
    while engine.has_unfinished_requests():
        deltas += engine.step()
        engine.check()
    (last,) = OutputAssembler().add(deltas)
    assert last.error is None
    assert last.outputs[0].token_ids == continuation([2, 2], 5)


def test_a_sampler_may_use_its_arrays_again() -> None:
    """A step's answer is read back a step late: by then the sampler may have written the next one there."""
    ids, flags = np.zeros(1, np.int32), np.zeros(1, bool)
    logprobs = LogprobColumns(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32), np.zeros(1, np.int32))

    class Thrifty:
        def sample(self, call: SampleCall) -> Sampled:
            answer = right(call)
            assert answer.logprobs is not None
            ids[:], flags[:] = answer.token_ids, False
            logprobs.token_ids[:], logprobs.logprobs[:] = answer.logprobs.token_ids, answer.logprobs.logprobs
            logprobs.rank[:] = answer.logprobs.rank
            return Sampled(ids, logprobs, flags)

    prompt = next([first, 5] for first in range(97) if complete([first, 5], 20)[2] == "stop")
    engine = fake_engine(lag=1, sampler=Thrifty())
    engine.add_request("alice", prompt, SamplingParams(max_tokens=20, logprobs=0))
    deltas = []
    while engine.has_unfinished_requests():
        deltas += engine.step()
    (output,) = OutputAssembler().add(deltas)
    tokens = output.outputs[0].token_ids
    assert (tokens, output.outputs[0].finish_reason) == (complete(prompt, 20)[0], "stop")
    assert [next(iter(each)) for each in output.outputs[0].logprobs or ()] == tokens


def test_rows_that_ask_for_no_logprobs_may_hold_anything() -> None:
    class Careless:
        def sample(self, call: SampleCall) -> Sampled:
            columns = right(call).logprobs
            if columns is None:
                return right(call)
            silent = call.rows.num_logprobs == NO_LOGPROBS
            columns.logprobs[silent], columns.rank[silent], columns.token_ids[silent] = np.nan, 0, 0
            return Sampled(right(call).token_ids, columns)

    engine = fake_engine(sampler=Careless())
    engine.add_request("alice", [5, 3], SamplingParams(max_tokens=3, logprobs=1, ignore_eos=True))
    engine.add_request("bob", [7, 1], SamplingParams(max_tokens=3, ignore_eos=True))
    deltas = []
    while engine.has_unfinished_requests():
        deltas += engine.step()
    outputs = OutputAssembler().add(deltas)
    assert {output.request_id: output.error for output in outputs} == {"alice": None, "bob": None}


PLUGIN = """
import sys
import numpy as np
from tinyvllm.batch import Sampled
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin

class Mine:
    num_calls = 0
    def __init__(self, context):
        pass
    def sample(self, call):
        self.num_calls += 1
        ids = call.logits.argmax(axis=-1)
        if self.num_calls == 3:
            return self.wrong(call, ids)
        return Sampled(ids)
    def wrong(self, call, ids):
        {body}

@hookimpl
def register_samplers():
    return [Plugin("mine", Mine)]
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return Sampled(ids + 2**32)", "sample returned token 42949"),
        ("return ids / 2", "sample returned float64 of shape (1,); expected Sampled(token_ids)"),
        ("raise KeyError('k')", "sample raised KeyError: 'k'"),
        ("sys.exit()", "sample raised SystemExit"),
    ],
)
def test_a_local_sampler_that_errs_once_fails_one_call_and_names_its_file(
    body: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(body=body))
    settings: dict[str, Any] = {"skip_tokenizer_init": True, "device": "cpu", "max_model_len": 64}
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    prompt = {"prompt_token_ids": [3, 14, 15]}
    expected = LLM(str(tiny), **settings).generate(prompt, params)[0].outputs[0].token_ids
    llm = LLM(str(tiny), plugins=[str(plugin)], sampler={"name": "mine"}, **settings)
    with pytest.raises(PluginError) as raised:
        llm.generate(prompt, params)
    assert f"sampler 'mine' of local plugin {plugin}: {message}" in str(raised.value)
    if "raised" in message:
        assert f'File "{plugin}", line 19, in wrong' in str(raised.value)
    assert llm.generate(prompt, params)[0].outputs[0].token_ids == expected
    llm.engine.check()
