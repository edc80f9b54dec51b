"""Every barrier and wait of every kernel removed in turn: something must notice, and the documentation says what."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.test_mutants import all_prelude_places
from tinyvllm.devices.emulator import Sanitizer

from . import (
    attention_samples,
    kernel_table,
    sanitized,
    test_attention_mutants,
    test_projection_mutants,
    test_sample_mutants,
    test_step_mutants,
)
from .barriers import PRELUDE, Barrier, Shown, all_files, barriers_of, rows
from .mutants import Scenario, copy_kernels, is_broken, sanitize, without_folders

SCENARIOS: dict[str, Scenario] = {
    **test_attention_mutants.SCENARIOS,
    **test_projection_mutants.SCENARIOS,
    **test_sample_mutants.SCENARIOS,
    **test_step_mutants.SCENARIOS,
}
RACES = {
    "attention_decode.cu": (attention_samples, "decode"),
    "gemm_small_core.cuh": (sanitized, "split"),
    "gemm_large_core.cuh": (sanitized, "large"),
    "gemm_wide_core.cuh": (sanitized, "wide_split"),
    "linear_residual_wide.cu": (sanitized, "wide_split"),
    "lm_head.cu": (sanitized, "argmax"),
    "penalties.cu": (test_sample_mutants, "races"),
    "sample_cut.cu": (test_sample_mutants, "races"),
}
"""What the race check runs for a file: ``run_<name>`` of a module."""

IN_KERNELS = [barrier for name in all_files() if not (PRELUDE / name).exists() for barrier in barriers_of(name)]


def places(shown: Shown) -> list[Barrier]:
    return [barrier for barrier in IN_KERNELS if barrier.shown is shown]


def test_every_barrier_says_what_it_orders() -> None:
    assert not [str(barrier) for name in all_files() for barrier in barriers_of(name) if not barrier.orders]


def test_every_barrier_of_the_prelude_is_removed_somewhere() -> None:
    names = [name for name in all_files() if (PRELUDE / name).exists()]
    assert all_prelude_places() == [(name, barrier.mutant.line) for name in names for barrier in barriers_of(name)]


def test_the_documentation_lists_every_barrier_and_what_notices() -> None:
    assert kernel_table.written_barriers() == rows(), kernel_table.AGAIN


def remove(barrier: Barrier, folder: Path) -> None:
    """The kernels in ``folder`` without one barrier."""
    barrier.mutant.write(folder, barrier.file)
    path = folder / barrier.file
    path.write_text(without_folders(path.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("barrier", places(Shown.VALUES), ids=str)
def test_a_missing_barrier_or_wait_changes_results(tmp_path: Path, mutant_cache: Path, barrier: Barrier) -> None:
    remove(barrier, copy_kernels(tmp_path))
    assert is_broken(SCENARIOS[barrier.file], tmp_path, mutant_cache), barrier.mutant.statement


@pytest.mark.slow
@pytest.mark.parametrize("barrier", places(Shown.RACE), ids=str)
def test_a_missing_barrier_that_results_do_not_show_is_a_race(
    tmp_path: Path, checked_mutant_cache: Path, barrier: Barrier
) -> None:
    remove(barrier, copy_kernels(tmp_path))
    module, sample = RACES[barrier.file]
    named = {"name": barrier.file} if module is test_sample_mutants else {}
    verdict = sanitize(module.__name__, sample, Sanitizer.RACE, tmp_path, checked_mutant_cache, **named)
    assert any(finding.kind == "race" for finding in verdict.findings), verdict.log[-2000:]
