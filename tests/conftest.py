"""What holds for all tests: one BLAS thread a process, hypothesis without time limits, ``--num-mutants``."""

from __future__ import annotations

import os

# Before NumPy is imported: workers of pytest-xdist share the cores, and small products gain nothing from threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from .tiny_checkpoint import tiny_model, write_config

__all__ = ["tiny_model", "write_config"]

# The machine may be busy, so no example has a deadline. CI draws the same examples each time: what fails there fails
# again, and new examples are found where somebody is looking.
settings.register_profile("tinyvllm", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tinyvllm")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tinyvllm")
    group.addoption(
        "--num-mutants",
        type=int,
        default=20,
        metavar="N",
        help="mutants of each kind of file that the tests of hostile files make (tests/mutate.py); default: 20",
    )
    group.addoption(
        "--mutant-seed", type=int, default=1, metavar="N", help="seed that the mutants are made from; default: 1"
    )


@pytest.fixture
def num_mutants(request: pytest.FixtureRequest) -> int:
    """How many mutants of each kind of file to try."""
    return int(request.config.getoption("--num-mutants"))


@pytest.fixture
def mutant_seed(request: pytest.FixtureRequest) -> int:
    """What the mutants are made from."""
    return int(request.config.getoption("--mutant-seed"))
