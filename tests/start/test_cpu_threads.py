"""Small products have one thread, large ones several, and the rest of the process keeps its own number."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tinyvllm import LLM, SamplingParams
from tinyvllm.devices.blas import Blas, find_blas
from tinyvllm.errors import ConfigError
from tinyvllm.shapes import ModelShape
from tinyvllm.start import cpu_threads
from tinyvllm.start.cpu_threads import MIN_SHARED_PRODUCTS, MIN_SHARED_WEIGHTS, ThreadedRunner, with_threads


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blas]:
    """NumPy's, with four threads."""
    found = find_blas()
    if found is None:
        pytest.skip("NumPy has another BLAS")
    before = found.num_threads
    found._set(4)
    monkeypatch.setattr(found, "_num_before", 4)
    yield found
    found._set(before)


class Watcher:
    """A runner that notes how many threads the BLAS has in each step."""

    def __init__(self, blas: Blas) -> None:
        self._blas = blas
        self.seen: list[int] = []

    def launch(self, step: Any) -> None:
        self.seen.append(self._blas.num_threads)


def shape(hidden: int, intermediate: int) -> ModelShape:
    return ModelShape(1, hidden, 1, 1, 64, intermediate, 64, 64)


def step(num_tokens: int) -> Any:
    batch = type("Batch", (), {"num_tokens": num_tokens})
    return type("Step", (), {"batch": batch})


SMALL, LARGE = shape(512, 1024), shape(4096, MIN_SHARED_WEIGHTS // 4096)
MANY_ROWS = MIN_SHARED_PRODUCTS // (512 * 1024)


@pytest.mark.parametrize(
    ("sizes", "num_threads", "batch_invariant", "expected"),
    [
        (SMALL, None, False, [1, 1, 4]),
        (SMALL, None, True, [1, 1, 1]),  # the bits of a row must not depend on the rows beside it
        (LARGE, None, False, [4, 4, 4]),
        (SMALL, 2, False, [2, 2, 2]),
        (LARGE, 1, False, [1, 1, 1]),
    ],
)
def test_the_size_of_a_step_decides_unless_the_configuration_does(
    sizes: ModelShape, num_threads: int | None, batch_invariant: bool, expected: list[int], blas: Blas
) -> None:
    watcher = Watcher(blas)
    runner = ThreadedRunner(cast(Any, watcher), blas, sizes, num_threads, batch_invariant=batch_invariant)
    for num_tokens in (1, MANY_ROWS - 1, MANY_ROWS):
        runner.launch(step(num_tokens))
        assert blas.num_threads == 4, "the number that the process had is restored"
    assert watcher.seen == expected


def test_the_number_is_restored_when_the_last_of_several_leaves(blas: Blas) -> None:
    inside, leave = threading.Barrier(2), threading.Event()

    def use() -> None:
        with blas.threads(1):
            inside.wait()
            leave.wait()

    other = threading.Thread(target=use)
    other.start()
    with blas.threads(2):
        inside.wait()
    assert blas.num_threads != 4, "the other is still within"
    leave.set()
    other.join()
    assert blas.num_threads == 4


def test_an_exception_restores_the_number(blas: Blas) -> None:
    with pytest.raises(ZeroDivisionError), blas.threads(1):
        raise ZeroDivisionError
    assert blas.num_threads == 4


def test_the_key_reaches_the_products_of_an_engine(blas: Blas, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    from tinyvllm.reference import linear

    monkeypatch.setattr(linear, "check_shape", lambda *_: seen.add(blas.num_threads))
    LLM("demo", device="cpu", num_threads=3).generate("1+1=", SamplingParams(max_tokens=2))
    assert seen == {3}


def test_a_number_for_a_library_that_cannot_be_told_is_refused_and_none_is_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_threads, "find_blas", lambda: None)
    runner = cast(Any, object())
    assert with_threads(runner, SMALL, None, batch_invariant=False) is runner
    with pytest.raises(ConfigError, match="num_threads is 3, but NumPy computes with"):
        with_threads(runner, SMALL, 3, batch_invariant=False)
