"""What a scheduler may not answer, and what is said of it; the engine goes on with the next request."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.fake_runner import complete, fake_engine
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import Schedule, SchedulerView
from tinyvllm.llm import LLM
from tinyvllm.outputs import OutputAssembler
from tinyvllm.packing import pack
from tinyvllm.request import SamplingParams

NOT_DONE = "; the step was not carried out"
PROMPT = [5, 3, 2, 1, 7, 11]


def one_row(view: SchedulerView) -> np.ndarray:
    """The row of the only request."""
    return np.concatenate([view.waiting, view.running])


def with_rows(rows: Callable[[SchedulerView], Any]) -> Callable[[SchedulerView], Any]:
    return lambda view: Schedule(rows(view), np.ones(1, np.int32))


def with_tokens(num_tokens: Any) -> Callable[[SchedulerView], Any]:
    return lambda view: Schedule(one_row(view), num_tokens)


def with_preempted(preempt: Callable[[SchedulerView], Any]) -> Callable[[SchedulerView], Any]:
    return lambda view: Schedule(np.zeros(0, np.int32), np.zeros(0, np.int32), preempt(view))


def mapped(count: Any) -> Callable[[SchedulerView], Any]:
    return lambda view: {view.request_id(int(one_row(view)[0])): count}


def failing(error: BaseException) -> Callable[[SchedulerView], Any]:
    def schedule(view: SchedulerView) -> Any:
        raise error

    return schedule


def writing(column: str) -> Callable[[SchedulerView], Any]:
    def schedule(view: SchedulerView) -> Any:
        getattr(view, column)[:] = 0

    return schedule


class Trap(Mapping[str, int]):
    """A mapping that fails when it is looked at."""

    def __getitem__(self, key: str) -> int:
        raise ZeroDivisionError("trap")

    def __iter__(self) -> Iterator[str]:
        raise ZeroDivisionError("trap")

    def __len__(self) -> int:
        return 1


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


INTS = "expected int32 of shape (n,)"
WRONG: dict[str, tuple[Callable[[SchedulerView], Any], str]] = {
    "nothing": (lambda view: None, "returned None, expected a Schedule or a mapping of request ids"),
    "a string": (lambda view: "r", "returned 'r', expected a Schedule or a mapping"),
    "a tuple": (lambda view: (one_row(view), [1]), "expected a Schedule or a mapping of request ids"),
    "the class": (lambda view: Schedule, "returned <class 'tinyvllm.interfaces.Schedule'>, expected a Schedule"),
    "a long answer": (lambda view: "x" * 10_000, "xxx..., expected a Schedule"),
    "an answer without a name": (lambda view: Unshowable(), "schedule raised RuntimeError: no name"),
    "no rows": (with_rows(lambda view: None), f"rows is None, {INTS}"),
    "rows of strings": (with_rows(lambda view: ["a"]), f"rows is <U1 of shape (1,), {INTS}"),
    "rows of floats": (with_rows(lambda view: one_row(view) + 0.0), f"rows is float64 of shape (1,), {INTS}"),
    "rows of bools": (with_rows(lambda view: np.ones(1, bool)), f"rows is bool of shape (1,), {INTS}"),
    "rows of objects": (with_rows(lambda view: [2**70]), f"rows is object of shape (1,), {INTS}"),
    "ragged rows": (with_rows(lambda view: [[0], [0, 0]]), f"rows is [[0], [0, 0]], {INTS}"),
    "rows of two dimensions": (with_rows(lambda view: one_row(view)[None]), f"rows is int32 of shape (1, 1), {INTS}"),
    "one row, not a list": (with_rows(lambda view: 0), f"rows is 0, {INTS}"),
    "rows that wrap around": (
        with_rows(lambda view: one_row(view).astype(np.int64) + 2**32),
        "rows holds 4294967296, expected 0 to 2147483647",
    ),
    "unsigned rows": (with_rows(lambda view: np.array([2**32 - 1], np.uint32)), "rows holds 4294967295"),
    "a negative row": (with_rows(lambda view: np.array([-1], np.int32)), "rows names row -1, which does not exist"),
    "a negative row, int64": (with_rows(lambda view: [-1]), "rows holds -1, expected 0 to 2147483647"),
    "a row that is nobody's": (with_rows(lambda view: [40]), "schedules row 40, which is not waiting or running"),
    "a row that does not exist": (
        with_rows(lambda view: [4096]),
        "rows names row 4096, which does not exist; see view.running and view.waiting",
    ),
    "a row twice": (
        lambda view: Schedule(np.repeat(one_row(view), 2), np.ones(2, np.int32)),
        "rows names a row twice",
    ),
    "a row too few": (lambda view: Schedule(one_row(view), np.ones(2, np.int32)), "names 1 rows but 2 num_tokens"),
    "no num_tokens": (with_tokens(None), f"num_tokens is None, {INTS}"),
    "zero tokens": (with_tokens(np.zeros(1, np.int32)), "gives row 0 0 tokens, expected 1 to 6"),
    "negative tokens": (with_tokens(np.array([-3], np.int32)), "gives row 0 -3 tokens, expected 1 to 6"),
    "too many tokens": (with_tokens(np.array([7], np.int32)), "gives row 0 7 tokens, expected 1 to 6"),
    "tokens that wrap around": (with_tokens(np.array([2**32 + 1])), "num_tokens holds 4294967297"),
    "half a token": (with_tokens(np.array([0.5])), f"num_tokens is float64 of shape (1,), {INTS}"),
    "infinitely many tokens": (with_tokens(np.array([np.inf])), f"num_tokens is float64 of shape (1,), {INTS}"),
    "more blocks than there are": (with_tokens(np.array([6], np.int32)), "needs 2 KV blocks, 1 are free"),
    "nothing preempted but None": (
        lambda view: Schedule(one_row(view), np.ones(1, np.int32), None),  # type: ignore[arg-type]
        f"preempt is None, {INTS}",
    ),
    "preempting nobody": (with_preempted(lambda view: [40]), "preempts a row that is neither running nor waiting"),
    "preempting what does not exist": (with_preempted(lambda view: [10**6]), "preempt names row 1000000"),
    "preempting twice": (with_preempted(lambda view: np.repeat(one_row(view), 2)), "preempt names a row twice"),
    "preempting what it schedules": (
        lambda view: Schedule(one_row(view), np.ones(1, np.int32), one_row(view)),
        "both schedules and preempts row 0",
    ),
    "preempting who holds nothing": (with_preempted(one_row), "scheduled nothing though 1 sequences wait and 0 run"),
    "nothing at all": (lambda view: {}, "scheduled nothing though 1 sequences wait and 0 run"),
    "an unknown request": (lambda view: {"x": 1}, "scheduled request 'x', which is neither waiting nor running"),
    "a request by number": (lambda view: {0: 1}, "scheduled request 0, which is neither waiting nor running"),
    "1.9 tokens by id": (mapped(1.9), "gives request 'bad' 1.9 tokens, expected a whole number of 1 to 2147483647"),
    "None by id": (mapped(None), "gives request 'bad' None tokens, expected a whole number"),
    "a word by id": (mapped("one"), "gives request 'bad' 'one' tokens, expected a whole number"),
    "2**40 tokens by id": (mapped(2**40), "gives request 'bad' 1099511627776 tokens, expected a whole number"),
    "True by id": (mapped(True), "gives request 'bad' True tokens, expected a whole number"),
    "no tokens by id": (mapped(0), "gives request 'bad' 0 tokens, expected a whole number"),
    "a mapping that fails": (lambda view: Trap(), "schedule raised ZeroDivisionError: trap"),
    "KeyError": (failing(KeyError("x")), "schedule raised KeyError: 'x'"),
    "MemoryError": (failing(MemoryError()), "schedule raised MemoryError"),
    "StopIteration": (failing(StopIteration()), "schedule raised StopIteration"),
    "an exception without a text": (failing(Silent()), "schedule raised Silent"),
    "an error of tinyvllm's": (failing(PluginError("mine")), "schedule raised PluginError: mine"),
    "an exit": (lambda view: sys.exit(3), "schedule raised SystemExit: 3"),
    "a closed generator": (failing(GeneratorExit()), "schedule raised GeneratorExit"),
    "the wrong arity": (lambda: None, "schedule raised TypeError"),  # type: ignore[dict-item,misc]
    "endless recursion": (lambda view: WRONG["endless recursion"][0](view), "schedule raised RecursionError"),
    "writing to a column": (writing("num_tokens"), "schedule raised ValueError: assignment destination is read-only"),
    "writing to the queue": (writing("waiting"), "schedule raised ValueError: assignment destination is read-only"),
}


class ErrsOnce:
    """A good scheduler, but for its first answer."""

    def __init__(self, answer: Callable[[SchedulerView], Any]) -> None:
        self._answer, self._has_erred = answer, False

    def schedule(self, view: SchedulerView) -> Any:
        if not self._has_erred:
            self._has_erred = True
            return self._answer(view)
        return pack(view, view.running, view.waiting)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_decision_is_named_not_obeyed_and_the_engine_goes_on(case: str, lag: int) -> None:
    answer, message = WRONG[case]
    num_blocks = 1 if case == "more blocks than there are" else 8
    engine = fake_engine(ErrsOnce(answer), lag=lag, num_blocks=num_blocks, budget=8)
    engine._admission._num_blocks = 8  # a sequence may be longer than what is free now
    engine.add_request("bad", PROMPT, SamplingParams(max_tokens=4))
    with pytest.raises(PluginError) as raised:
        engine.step()
    engine.check()
    assert message in str(raised.value)
    assert str(raised.value).startswith(("scheduler 'under test': ", "scheduler 'under test' scheduled nothing"))
    if "raised" not in message and "scheduled nothing" not in message:
        assert str(raised.value).endswith(NOT_DONE)
    (failed,) = engine.step()
    assert failed.error is raised.value
    assert failed.token_ids == []
    engine.add_request("next", [2, 2], SamplingParams(max_tokens=3))
    deltas = []
    while engine.has_unfinished_requests():
        deltas += engine.step()
        engine.check()
    (output,) = OutputAssembler().add(deltas)
    assert output.error is None
    assert output.outputs[0].token_ids == complete([2, 2], 3)[0]


PLUGIN = """
import sys
import numpy as np
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin, Schedule
from tinyvllm.packing import pack

class Mine:
    num_calls = 0
    def __init__(self, context):
        pass
    def schedule(self, view):
        self.num_calls += 1
        if self.num_calls == 3:
            return self.wrong(view)
        return pack(view, view.running, view.waiting)
    def wrong(self, view):
        {body}

@hookimpl
def register_schedulers():
    return [Plugin("mine", Mine)]
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return Schedule(view.running.astype(np.int64) + 2**32, [1])",
            "schedule rows holds 4294967296, expected 0 to 2147483647",
        ),
        ("return 1 // 0", "schedule raised ZeroDivisionError: integer division or modulo by zero"),
        ("sys.exit(0)", "schedule raised SystemExit: 0"),
    ],
)
def test_a_local_scheduler_that_errs_once_fails_one_call_and_names_its_file(
    body: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(body=body))
    settings: dict[str, Any] = {"skip_tokenizer_init": True, "device": "cpu", "max_model_len": 64}
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    prompt = {"prompt_token_ids": [3, 14, 15]}
    expected = LLM(str(tiny), **settings).generate(prompt, params)[0].outputs[0].token_ids
    llm = LLM(str(tiny), plugins=[str(plugin)], scheduler={"name": "mine"}, **settings)
    with pytest.raises(PluginError) as raised:
        llm.generate(prompt, params)
    assert f"scheduler 'mine' of local plugin {plugin}: {message}" in str(raised.value)
    if "raised" in message:
        assert f'File "{plugin}", line 18, in wrong' in str(raised.value)
    assert llm.generate(prompt, params)[0].outputs[0].token_ids == expected
    llm.engine.check()
