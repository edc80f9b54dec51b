"""Every barrier and wait of the sampling kernels removed in turn, and typical slips: a named test must notice each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyvllm.kernels
from tinyvllm.devices.compile_cache import default_cache_dir
from tinyvllm.devices.emulator.build import Sanitizer, build_runtime, find_compiler
from tinyvllm.devices.emulator.check import check
from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.devices.emulator.mutants import mutants_of
from tinyvllm.devices.interface import Device
from tinyvllm.errors import KernelError
from tinyvllm.kernels import argmax, logprobs, penalties, sample

from . import sampling, test_argmax, test_logprobs, test_penalties, test_philox_device, test_sample

KERNELS = Path(tinyvllm.kernels.__file__).parent
LAUNCHERS = (argmax, sample, logprobs, penalties)
Scenario = Callable[[Device], None]


def argmax_scenario(device: Device) -> None:
    test_argmax.test_it_waits_for_the_kernel_that_makes_the_logits(device)
    test_argmax.test_the_sizes_of_a_real_model(device)
    test_argmax.test_a_row_with_a_nan_or_an_infinity_is_corrupt_and_its_neighbours_are_not(device, np.nan, 5000)


def race_scenario(device: Device) -> None:
    test_sample.test_it_waits_for_the_kernel_that_makes_the_logits(device, {})
    test_sample.test_nearly_every_token_is_the_references(device)
    test_sample.test_company_and_place_change_no_token(device, 1029)
    test_sample.test_a_corrupt_row_is_reported_and_the_others_go_on(device, np.nan, {})
    test_sample.test_the_sizes_of_a_real_model(device)


def cut_scenario(device: Device) -> None:
    test_sample.test_it_waits_for_the_kernel_that_makes_the_logits(device, {"top_k": 5})
    test_sample.test_cuts_come_in_order_and_ties_go_by_lowest_id(device)
    for kept in (47, 49, 1299):
        test_sample.test_a_nucleus_of_equal_tokens_ends_at_its_token(device, kept)
    for top_p, kept in ((0.25, 1), (0.26, 2), (1e-60, 1)):
        test_sample.test_the_nucleus_has_the_token_that_crosses_top_p_and_none_after(device, top_p, kept)
    test_sample.test_nearly_every_token_is_the_references(device)
    test_sample.test_the_sizes_of_a_real_model(device)


def logprobs_scenario(device: Device) -> None:
    test_logprobs.test_they_follow_the_sampler_without_the_host(device)
    test_logprobs.test_company_and_block_sizes_change_no_bit(device)
    test_logprobs.test_the_sizes_of_a_real_model(device)
    rng = np.random.default_rng(0)
    for vocab_size in (3, 65, 300):  # ties, all tokens listed
        x = np.round(rng.standard_normal((2, vocab_size))).astype(np.float32)
        chosen = np.array([0, vocab_size - 1], np.int32)
        k = min(vocab_size, 40)
        test_logprobs.check(x, chosen, k, test_logprobs.logprobs(device, x, chosen, k))


def order_scenario(device: Device) -> None:
    race_scenario(device)
    logprobs_scenario(device)  # two reductions one after the other


def penalties_scenario(device: Device) -> None:
    test_penalties.test_steps_follow_each_other_without_the_host(device)
    test_penalties.test_a_graph_of_apply_sample_and_record_keeps_up_with_the_histories(device)
    for seed in range(12):
        inner = test_penalties.test_rules_give_the_references_bits.hypothesis.inner_test  # type: ignore[attr-defined]
        inner(device, 700, 4, seed)
    test_penalties.test_no_rule_hides_a_corrupt_row(device, np.nan)
    test_penalties.test_the_end_is_forbidden_until_there_are_min_tokens(device)


def philox_scenario(device: Device) -> None:
    inner = test_philox_device.test_words_and_uniforms_have_the_references_bits.hypothesis.inner_test  # type: ignore[attr-defined]
    inner(device, 2**40 + 12345, 3, 77, 700)
    test_philox_device.test_extreme_words_stay_within_the_bounds(device)


SCENARIOS: dict[str, Scenario] = {
    "argmax.cu": argmax_scenario,
    "sample.cu": race_scenario,
    "sample_cut.cu": cut_scenario,
    "sample_order.cuh": order_scenario,
    "sample_row.cuh": race_scenario,
    "sample_select.cuh": cut_scenario,
    "logprobs.cu": logprobs_scenario,
    "penalties.cu": penalties_scenario,
    "philox.cuh": philox_scenario,
}

# An emulated thread is not interrupted between reading and writing, so that an added bias cannot overwrite a -inf.
SHOWN_BY_RACES_ALONE = ("forbidden tokens stay so",)

SLIPS = [
    ("philox.cuh", "lane < 2 ? (lane == 0 ? four.x : four.y)", "lane < 2 ? (lane == 0 ? four.y : four.x)"),
    ("philox.cuh", "round < 10", "round < 9"),
    ("philox.cuh", "key.y += 0xBB67AE85u", "key.y += 0x9E3779B9u"),
    ("philox.cuh", "uint32_t(seed >> 32)", "0u"),
    ("philox.cuh", "float(word) * 0x1p-32f + 0x1p-33f", "float(word >> 8) * 0x1p-24f + 0x1p-25f"),
    ("philox.cuh", "1.0f - 0x1p-24f)", "1.0f)"),
    ("philox.cuh", "+ 1) * 0.69315f", ") * 0.69315f"),
    ("philox.cuh", "- 0.328f", "+ 0.0f"),
    ("sample_row.cuh", "(x - row_max) / temperature", "x - row_max"),  # missing temperature
    ("philox.cuh", "uint32_t(position)", "0u"),
    ("sample_row.cuh", "columns.temperature[slot] : 1.0f", "columns.temperature[slot] : 0.0f"),
    ("sample.cu", "words[group * 4 + 1] = four.y", "words[group * 4 + 1] = four.z"),  # wrong lane
    ("sample.cu", "if (row.is_random && z[i] < hopeless)", "if (row.is_random && z[i] < -3.0f)"),
    ("sample.cu", "row.scaled(row.logits[token], largest)", "row.scaled(row.logits[token], row.logits[token])"),
    ("sample.cu", "words(loaded_token(first, group * 4) / 4)", "words(loaded_token(0, group * 4) / 4)"),
    ("sample_order.cuh", "| ~token_id", "| token_id"),
    ("sample_order.cuh", "x < INFINITY ? x : INFINITY", "x"),
    ("sample_select.cuh", "at < goal && goal <= at + bins[i]", "at <= goal && goal < at + bins[i]"),  # off by one
    ("sample_select.cuh", "min(from.last, ((prefix + 1) << shift) - 1)", "((prefix + 1) << shift) - 1"),
    ("sample_select.cuh", "s.num_listed <= LIST_SIZE", "true"),
    ("sample_select.cuh", "place >> shift > prefix", "place >> shift >= prefix"),
    ("sample_cut.cu", "max(whole + (double(whole) < goal), uint64_t(1))", "whole + (double(whole) < goal)"),
    ("sample_cut.cu", "expf(-distance) < row.min_p", "expf(-distance) <= row.min_p"),
    ("sample_cut.cu", "mass_goal(row.top_p, total)", "mass_goal(row.top_p, uint64_t(0x1p44f))"),
    ("logprobs.cu", "x > of_chosen", "x >= of_chosen"),
    ("logprobs.cu", "expf(x - largest)", "expf(x)"),
    ("logprobs.cu", "listed[j] < listed[i]", "listed[j] <= listed[i]"),
    ("penalties.cu", "x > 0.0f ? x / r : multiply(x, r)", "x / r"),
    ("penalties.cu", "multiply(f, float(count))) - p", "fmaf(f, float(count), p))"),
    ("penalties.cu", "if (count != 0) x", "if (seen != 0) x"),
    ("penalties.cu", "generated < min_tokens[rule]", "generated <= min_tokens[rule]"),
    ("penalties.cu", "ids[middle] < id", "ids[middle] <= id"),
    ("penalties.cu", "length - 1 > num_output", "length > num_output"),
    ("penalties.cu", "(num_output - (length - 1) + i) % WINDOW", "(num_output - length + i) % WINDOW"),
    ("penalties.cu", "num_output[rule] += 1", "num_output[rule] += 2"),
    ("penalties.cu", "(i - num_prompt) % WINDOW", "i % WINDOW"),
    ("penalties.cu", "logits[id] < INFINITY ? x : logits[id]", "x"),
]  # fmt: skip


def broken(name: str, device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernels in ``folder`` fail the scenario of the file ``name``."""
    for launcher in LAUNCHERS:
        monkeypatch.setattr(launcher, "source", lambda file: folder / file)
    monkeypatch.setattr(test_philox_device, "SOURCE", folder / "philox_words.cu")
    try:
        SCENARIOS[name](device)
    except (AssertionError, KernelError):
        return True
    return False


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh, but for the emulator's runtime library, which takes seconds."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "emulator").mkdir()
    shutil.copy(build_runtime(find_compiler(), default_cache_dir(), Sanitizer.NONE), folder / "emulator")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of all that the kernels include; launchers made before, or with it, are forgotten."""
    caches: tuple[Any, ...] = (sampling.make_sample, test_argmax.make_argmax, test_logprobs.make_logprobs)
    for path in (*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh")):
        shutil.copy(path, tmp_path)
    text = sampling.PHILOX_WORDS.read_text().replace("../../tinyvllm/kernels/", "")
    (tmp_path / "philox_words.cu").write_text(text)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def barriers(*, is_shown: bool) -> list[tuple[str, int]]:
    """File and line of every barrier and wait that results show, or that they do not."""
    found = [(name, mutant) for name in SCENARIOS for mutant in mutants_of(KERNELS / name)]
    lines = {name: (KERNELS / name).read_text().splitlines() for name in SCENARIOS}
    return [
        (name, mutant.line)
        for name, mutant in found
        if any(part in lines[name][mutant.line - 1] for part in SHOWN_BY_RACES_ALONE) != is_shown
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), barriers(is_shown=True))
def test_a_missing_barrier_or_wait_changes_results(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: int
) -> None:
    (mutant,) = (mutant for mutant in mutants_of(KERNELS / name) if mutant.line == line)
    mutant.write(folder, name)
    device = EmulatorDevice(cache_dir=cache_dir)
    assert any(broken(name, device, folder, monkeypatch) for _ in range(3)), mutant.statement


def run_for_races(device: Device, name: str, folder: str) -> None:
    """What the race check runs, in a process of its own: small steps with the kernels in ``folder``."""
    for launcher in LAUNCHERS:
        launcher.source = lambda file: Path(folder) / file  # type: ignore[attr-defined]
    if name == "penalties.cu":
        test_penalties.test_steps_follow_each_other_without_the_host(device)
        test_penalties.test_biases_and_bad_words_meet_on_the_same_tokens(device)
    elif name == "logprobs.cu":
        test_logprobs.test_they_follow_the_sampler_without_the_host(device)
    elif name == "argmax.cu":
        test_argmax.test_it_waits_for_the_kernel_that_makes_the_logits(device)
    else:
        test_sample.test_it_waits_for_the_kernel_that_makes_the_logits(device, {})
        test_sample.test_it_waits_for_the_kernel_that_makes_the_logits(device, {"top_k": 5, "top_p": 0.9})


def races(name: str, folder: Path) -> list[str]:
    verdict = check(f"{__name__}:run_for_races", Sanitizer.RACE, {"name": name, "folder": str(folder)})
    return [str(finding) for finding in verdict.findings]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["argmax.cu", "sample.cu", "logprobs.cu", "penalties.cu"])
def test_the_race_check_finds_nothing(folder: Path, name: str) -> None:
    assert races(name, folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), barriers(is_shown=False))
def test_the_race_check_names_what_no_result_shows(folder: Path, name: str, line: int) -> None:
    (mutant,) = (mutant for mutant in mutants_of(KERNELS / name) if mutant.line == line)
    path = mutant.write(folder, name)
    assert any(f"{path}:" in finding for finding in races(name, folder))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), [("argmax.cu", "row"), ("sample.cu", "b")])
def test_the_race_check_sees_an_arrival_that_publishes_nothing(folder: Path, name: str, row: str) -> None:
    text, old = (folder / name).read_text(), f"is_last = is_last_arrival(counters + {row}, num_tiles);"
    assert text.count(old) == 1
    new = f"is_last = atomicAdd(counters + {row}, 1u) == num_tiles - 1; if (is_last) counters[{row}] = 0;"
    (folder / name).write_text(text.replace(old, new))
    assert any("race" in finding for finding in races(name, folder))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new"), SLIPS)
def test_a_slip_changes_results(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
) -> None:
    text = (folder / name).read_text()
    assert text.count(old) == 1
    (folder / name).write_text(text.replace(old, new))
    assert broken(name, EmulatorDevice(cache_dir=cache_dir), folder, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_kernels_as_they_are_pass_every_scenario(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert not broken(name, EmulatorDevice(cache_dir=cache_dir), folder, monkeypatch)
