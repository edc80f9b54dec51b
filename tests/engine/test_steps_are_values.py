"""A step could be sent to another process: it holds plain values, and none of them changes once it was launched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from tests.engine.fake_runner import fake_engine
from tinyvllm.batch import ROW_COLUMNS, SamplingRows
from tinyvllm.engine.engine import Engine
from tinyvllm.request import SamplingParams
from tinyvllm.step import Pending, Step

BLOCK_TABLES = "step.batch.block_tables"
"""Alone a view of the engine's memory: a copy would cost each step the length of its contexts."""


def arrays_of(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every array in a value, with its name; an error if there is anything but plain values."""
    if isinstance(value, np.ndarray):
        assert value.dtype.kind in "iufb", f"{name} holds {value.dtype}"
        yield name, value
    elif isinstance(value, SamplingRows):
        for column in ROW_COLUMNS:
            yield from arrays_of(getattr(value, column), f"{name}.{column}")
    elif is_dataclass(value):
        kind: Any = type(value)
        assert kind.__dataclass_params__.frozen, f"{name} is a {kind.__name__}, which can change"
        for each in fields(value):
            yield from arrays_of(getattr(value, each.name), f"{name}.{each.name}")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from arrays_of(item, f"{name}[{i}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            assert isinstance(key, int | str)
            yield from arrays_of(item, f"{name}[{key!r}]")
    else:
        assert value is None or isinstance(value, bool | int | float | str), f"{name} is a {type(value).__name__}"


def written_by(engine: Engine) -> list[np.ndarray]:
    """The arrays that an engine writes in place."""
    books = engine._books
    owners = [vars(books.table), vars(books.table.blocks), books.launcher._sampling._columns]
    found = [
        each for owner in owners for each in owner.values() if isinstance(each, np.ndarray) and each.flags.writeable
    ]
    assert len(found) > 20
    return found + [each.tokens._buffer for each in books.requests.completions()]


class Watched:
    """Looks through each step as it is launched, and again at the end."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.names, self._seen = engine, set[str](), list[tuple[str, np.ndarray, np.ndarray]]()
        self._launch = engine._runner.launch
        engine._runner.launch = self._launched  # type: ignore[method-assign]

    def _launched(self, step: Step) -> Pending:
        written = written_by(self.engine)
        for name, array in arrays_of(step, "step"):
            self.names.add(name)
            if name != BLOCK_TABLES:
                shared = [each for each in written if np.may_share_memory(each, array)]
                assert not shared, f"{name} lies in memory that the engine writes"
                self._seen.append((name, array, array.copy()))
        return self._launch(step)

    def check(self) -> None:
        for name, array, before in self._seen:
            assert np.array_equal(array, before), f"{name} has changed"


@pytest.mark.parametrize(("lag", "is_late"), [(0, False), (1, False), (1, True)])
def test_a_step_is_plain_values_that_do_not_change(lag: int, is_late: bool) -> None:
    engine = fake_engine(num_blocks=24, lag=lag, is_late=is_late, num_preemptions=5)
    watched = Watched(engine)
    asked: list[dict[str, Any]] = [
        {"logit_bias": {3: 1.5}, "bad_words": None, "stop_token_ids": [90], "extra_args": {"mine": [1, {"a": None}]}},
        {"prompt_logprobs": 1, "allowed_token_ids": [1, 2, 3]},
        {"presence_penalty": 1.0, "n": 2},
        {"frequency_penalty": 0.5, "seed": 2**63, "logprobs": 1},
        {},
    ]
    for i, each in enumerate([*asked, *asked]):
        prompt = [(7 * i + j) % 90 for j in range(5 + 3 * i)]
        engine.add_request(str(i), prompt, SamplingParams(max_tokens=8 + i, ignore_eos=True, **each))
        engine.step()
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.stats().num_preemptions > 0
    watched.check()
    wanted = {"step.started.sequences[0].token_ids", "step.table_updates.blocks", "step.prompt_logprobs[0].targets"}
    assert wanted < watched.names
