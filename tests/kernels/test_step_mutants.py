"""Typical slips in the kernel that completes a step's inputs: a test must notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyvllm.devices.interface import Device

from . import test_download, test_step_inputs
from .mutants import Scenario, copy_kernels, is_broken, plant


def step_scenario(device: Device) -> None:
    tokens = test_step_inputs.test_tokens_come_from_the_last_step_and_tables_are_updated.hypothesis.inner_test  # type: ignore[attr-defined]
    tokens(device, 600, 7, 1)
    goes_on = test_step_inputs.test_a_decode_step_goes_on_by_itself.hypothesis.inner_test  # type: ignore[attr-defined]
    for num_rows, num_padding, block_size, seed in ((1, 0, 16, 2), (40, 8, 1, 3), (300, 20, 8, 4)):
        goes_on(device, num_rows, num_padding, block_size, 4, seed)


def download_scenario(device: Device) -> None:
    arrives = test_download.test_any_bytes_from_any_address_arrive_and_nothing_else_is_written.hypothesis.inner_test  # type: ignore[attr-defined]
    for num_bytes, start in ((3, 0), (1031, 0), (1030, 1), (1300, 4)):
        arrives(device, num_bytes, start, num_bytes)
    test_download.test_it_waits_for_what_it_copies(device)


SCENARIOS: dict[str, Scenario] = {"step_inputs.cu": step_scenario, "download.cu": download_scenario}

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
DOWNLOAD_SLIPS = [
    ("int i = 4 * num_words + int(threadIdx.x)", "int i = 4 * num_words + 1 + int(threadIdx.x)"),
    ("i < num_bytes; i += THREADS", "i < num_words; i += THREADS"),
    ("i < num_words; i += THREADS)\n        re", "i <= num_words; i += THREADS)\n        re"),
]


@pytest.mark.parametrize(("old", "new"), SLIPS)
def test_a_slip_is_noticed(tmp_path: Path, mutant_cache: Path, old: str, new: str) -> None:
    plant(tmp_path, "step_inputs.cu", old, new)
    assert is_broken(step_scenario, tmp_path, mutant_cache)


@pytest.mark.parametrize(("old", "new"), DOWNLOAD_SLIPS)
def test_a_slip_in_the_copy_to_the_host_is_noticed(tmp_path: Path, mutant_cache: Path, old: str, new: str) -> None:
    plant(tmp_path, "download.cu", old, new)
    assert is_broken(download_scenario, tmp_path, mutant_cache)


def test_without_a_slip_nothing_is(tmp_path: Path, mutant_cache: Path) -> None:
    for scenario in SCENARIOS.values():
        assert not is_broken(scenario, copy_kernels(tmp_path), mutant_cache)
