"""Typical slips in the kernels that a step begins and ends with: a test must notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyvllm.devices.interface import Device

from . import test_host_ring, test_step_inputs
from .mutants import Scenario, copy_kernels, is_broken, plant


def step_scenario(device: Device) -> None:
    tokens = test_step_inputs.test_tokens_come_from_the_last_step_and_tables_are_updated.hypothesis.inner_test  # type: ignore[attr-defined]
    tokens(device, 600, 7, 1)
    goes_on = test_step_inputs.test_a_decode_step_goes_on_by_itself.hypothesis.inner_test  # type: ignore[attr-defined]
    for num_rows, num_padding, block_size, seed in ((1, 0, 16, 2), (40, 8, 1, 3), (300, 20, 8, 4)):
        goes_on(device, num_rows, num_padding, block_size, 4, seed)


def ring_scenario(device: Device) -> None:
    comes = test_host_ring.test_each_step_s_copy_comes_to_the_host_one_step_late.hypothesis.inner_test  # type: ignore[attr-defined]
    for num_words in (1, 300):
        comes(device, num_words, 7, num_words)
    test_host_ring.test_a_replayed_graph_copies_each_time(device)


SCENARIOS: dict[str, Scenario] = {"step_inputs.cu": step_scenario, "host_ring.cu": ring_scenario}

SLIPS = [
    ("max(sampled[-1 - token], 0)", "sampled[-1 - token]"),
    ("positions[t] + 1;", "positions[t];"),
    ("is_next && slot_mapping[t] >= 0", "is_next"),  # padding goes on, too
    ("new_positions[t] = position + 1", "new_positions[t] = position"),
    ("position / block_size];", "(position - 1) / block_size];"),  # the block before
    ("block * block_size + position", "block + position"),
    ("updates[1] = 0;", ""),
    ("updates[0] = 1;", ""),
    ("i += num_threads", "i += num_updates"),
]
RING_SLIPS = [
    ("size_t(now % NUM_PLACES) * (num_words + 1)", "size_t(now % NUM_PLACES) * num_words"),
    ("*count = now + 1;", ""),
    ("place[0] = now;", ""),
    ("i < num_words; i += THREADS", "i < THREADS; i += THREADS"),
    ("place[1 + i] = source[i];", "place[i] = source[i];"),
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
