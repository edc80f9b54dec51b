"""Typical slips in the kernels that a step begins and ends with: a test must notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyvllm.device import Gpu

from . import test_host_ring, test_step_inputs
from .mutants import Scenario, copy_kernels, is_broken, plant


def step_scenario(device: Gpu) -> None:
    completes = test_step_inputs.test_unseen_tokens_come_from_their_slots_and_tables_are_updated.hypothesis.inner_test  # type: ignore[attr-defined]
    for is_decode in (False, True):
        completes(device, 600, 7, 120, is_decode, 1)


def ring_scenario(device: Gpu) -> None:
    comes = test_host_ring.test_each_step_s_copy_comes_to_the_host_one_step_late.hypothesis.inner_test  # type: ignore[attr-defined]
    for num_words in (1, 300):
        comes(device, num_words, 7, num_words)
    test_host_ring.test_tokens_become_the_newest_of_their_slots(device)
    test_host_ring.test_a_replayed_graph_copies_each_time(device)


SCENARIOS: dict[str, Scenario] = {"step_inputs.cu": step_scenario, "host_ring.cu": ring_scenario}

SLIPS = [
    ("newest[-1 - token]", "newest[-token]"),
    ("newest[-1 - token]", "newest[t]"),
    ("updates + 1 + 3 * i", "updates + 3 * i"),
    ("t < num_tokens; t += num_threads", "t < THREADS; t += num_threads"),
    ("i < num_updates; i += num_threads", "i < THREADS; i += num_threads"),
]
RING_SLIPS = [
    ("size_t(now % NUM_PLACES) * (num_words + 1)", "size_t(now % NUM_PLACES) * num_words"),
    ("*count = now + 1;", ""),
    ("place[0] = now;", ""),
    ("i < num_words; i += THREADS", "i < THREADS; i += THREADS"),
    ("place[1 + i] = source[i];", "place[i] = source[i];"),
    ("if (slots[i] >= 0) newest", "newest"),
    ("newest[slots[i]] = max(int(source[i]), 0);", "newest[i] = max(int(source[i]), 0);"),
    ("max(int(source[i]), 0);", "int(source[i]);"),
    ("if (slots[i] >= 0) newest[slots[i]]", "newest[max(slots[i], 0)]"),
    ("i < num_rows; i += THREADS", "i < num_words; i += THREADS"),
]


@pytest.mark.parametrize(("old", "new"), SLIPS)
def test_a_slip_is_noticed(tmp_path: Path, mutant_cache: Path, old: str, new: str) -> None:
    plant(tmp_path, "step_inputs.cu", old, new)
    assert is_broken(step_scenario, tmp_path, mutant_cache)


@pytest.mark.parametrize(("old", "new"), RING_SLIPS)
def test_a_slip_in_the_copy_to_the_host_is_noticed(tmp_path: Path, mutant_cache: Path, old: str, new: str) -> None:
    plant(tmp_path, "host_ring.cu", old, new)
    assert is_broken(ring_scenario, tmp_path, mutant_cache)


def test_without_a_slip_nothing_is(tmp_path: Path, mutant_cache: Path) -> None:
    for scenario in SCENARIOS.values():
        assert not is_broken(scenario, copy_kernels(tmp_path), mutant_cache)
