"""Typical slips in the sampling kernels: a test must notice. Missing barriers are in ``test_barriers``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinyvllm.device import Gpu
from tinyvllm.devices.emulator import Sanitizer

from . import test_argmax, test_logprobs, test_penalties, test_philox_device, test_sample
from .mutants import Scenario, copy_kernels, device_of, is_broken, plant, sanitize


def argmax_scenario(device: Gpu) -> None:
    test_argmax.test_it_waits_for_the_kernel_that_makes_the_logits(device)
    test_argmax.test_the_sizes_of_a_real_model(device)
    inner = test_argmax.test_it_is_the_largest_logit_and_the_lowest_id_of_equals.hypothesis.inner_test  # type: ignore[attr-defined]
    for seed in range(3):
        inner(device, 5000, 5, seed)
    test_argmax.test_a_row_with_a_nan_or_an_infinity_is_corrupt_and_its_neighbours_are_not(device, np.nan, 5000)


def race_scenario(device: Gpu) -> None:
    test_sample.test_it_waits_for_the_kernel_that_makes_the_logits(device, {})
    test_sample.test_nearly_every_token_is_the_references(device)
    test_sample.test_company_and_place_change_no_token(device, 1029)
    test_sample.test_how_rows_are_cut_changes_no_token(device)
    for vocab_size, rise, temperature in ((20, 0.0, 1e-6), (1029, 1.0, 1)):
        test_sample.test_more_tokens_may_win_than_a_tile_can_name(device, vocab_size, rise, temperature)
    test_sample.test_a_corrupt_row_is_reported_and_the_others_go_on(device, np.nan, {})
    test_sample.test_the_sizes_of_a_real_model(device)


def cut_scenario(device: Gpu) -> None:
    test_sample.test_it_waits_for_the_kernel_that_makes_the_logits(device, {"top_k": 5})
    for list_size in (1, 48):
        test_sample.test_cuts_come_in_order_and_ties_go_by_lowest_id(device, list_size)
    test_sample.test_a_quotient_at_the_edge_of_a_bucket_has_the_bits_of_a_division(device)
    for kept, list_size in ((1, 1300), (47, 48), (49, 1300), (1299, 48)):
        test_sample.test_a_nucleus_of_equal_tokens_ends_at_its_token(device, kept, list_size)
    for temperature, list_size in ((1.0, 1024), (1.0, 48), (1e7, 1024)):
        test_sample.test_most_of_a_flat_vocabulary_may_be_kept(device, temperature, list_size)
    for top_p, kept in ((0.25, 1), (0.26, 2), (1e-60, 1)):
        test_sample.test_the_nucleus_has_the_token_that_crosses_top_p_and_none_after(device, top_p, kept)
    test_sample.test_nearly_every_token_is_the_references(device)
    test_sample.test_the_sizes_of_a_real_model(device)


def tile_scenario(device: Gpu) -> None:
    argmax_scenario(device)
    race_scenario(device)


def logprobs_scenario(device: Gpu) -> None:
    test_logprobs.test_they_follow_the_sampler_without_the_host(device)
    test_logprobs.test_company_and_block_sizes_change_no_bit(device)
    test_logprobs.test_rows_that_ask_for_none_or_are_corrupt_get_nan_and_touch_no_other(device, np.nan)
    test_logprobs.test_the_sizes_of_a_real_model(device)
    rng = np.random.default_rng(0)
    for vocab_size in (3, 65, 300):  # ties, all tokens listed
        x = np.round(rng.standard_normal((2, vocab_size))).astype(np.float32)
        chosen = np.array([0, vocab_size - 1], np.int32)
        k = min(vocab_size, 40)
        test_logprobs.check(x, chosen, k, test_logprobs.logprobs(device, x, chosen, k))


def order_scenario(device: Gpu) -> None:
    race_scenario(device)
    logprobs_scenario(device)  # two reductions one after the other


def penalties_scenario(device: Gpu) -> None:
    test_penalties.test_steps_follow_each_other_without_the_host(device)
    test_penalties.test_a_graph_of_apply_sample_and_record_keeps_up_with_the_histories(device)
    for seed in range(12):
        inner = test_penalties.test_rules_give_the_references_bits.hypothesis.inner_test  # type: ignore[attr-defined]
        inner(device, 700, 4, seed)
    test_penalties.test_no_rule_hides_a_corrupt_row(device, np.nan)
    test_penalties.test_the_end_is_forbidden_until_there_are_min_tokens(device)


def philox_scenario(device: Gpu) -> None:
    inner = test_philox_device.test_words_and_uniforms_have_the_references_bits.hypothesis.inner_test  # type: ignore[attr-defined]
    inner(device, 2**40 + 12345, 3, 77, 700)
    test_philox_device.test_extreme_words_stay_within_the_bounds(device)


SCENARIOS: dict[str, Scenario] = {
    "argmax.cu": argmax_scenario,
    "sample.cu": race_scenario,
    "sample_cut.cu": cut_scenario,
    "sample_order.cuh": order_scenario,
    "sample_race.cuh": race_scenario,
    "sample_row.cuh": race_scenario,
    "sample_select.cuh": cut_scenario,
    "sample_tile.cuh": tile_scenario,
    "logprobs.cu": logprobs_scenario,
    "penalties.cu": penalties_scenario,
    "philox.cuh": philox_scenario,
}

SLIPS = [
    ("philox.cuh", "lane < 2 ? (lane == 0 ? four.x : four.y)", "lane < 2 ? (lane == 0 ? four.y : four.x)"),
    ("philox.cuh", "round < 10", "round < 9"),
    ("philox.cuh", "key.y += 0xBB67AE85u", "key.y += 0x9E3779B9u"),
    ("philox.cuh", "uint32_t(seed >> 32)", "0u"),
    ("philox.cuh", "float(word) * 0x1p-32f + 0x1p-33f", "float(word >> 8) * 0x1p-24f + 0x1p-25f"),
    ("philox.cuh", "1.0f - 0x1p-24f)", "1.0f)"),
    ("philox.cuh", "22.18081f - __logf", "21.0f - __logf"),
    ("philox.cuh", "__fdividef(1.0f - u, u)", "__fdividef(1.0f, u)"),
    ("sample_row.cuh", "(x - row_max) / temperature", "x - row_max"),  # missing temperature
    ("philox.cuh", "uint32_t(position)", "0u"),
    ("sample_row.cuh", "columns.temperature[slot] : 1.0f", "columns.temperature[slot] : 0.0f"),
    ("sample_race.cuh", "min(min(four.x, four.y),", "min(min(four.x, four.x),"),
    ("sample_race.cuh", "z[group] + gumbel_max < limit", "z[group] + 1.0f < limit"),
    ("sample_race.cuh", "counter(loaded_token(at, group * 4) / 4)", "counter(loaded_token(tile.first, group * 4) / 4)"),
    ("sample_race.cuh", "loaded_token(at, 4 * (__ffs(int(groups)) - 1))", "loaded_token(at, 0)"),
    ("sample_order.cuh", "i < 2 ? (i == 0 ? four[0] : four[1])", "i < 2 ? (i == 0 ? four[1] : four[0])"),  # wrong lane
    ("sample_race.cuh", "row.scaled(x, row_max)", "row.scaled(x, x)"),
    ("sample_race.cuh", "size > shortlist_size ? record_tokens + 1 : list.num_left", "list.num_left"),
    ("sample_race.cuh", "records[i].num_candidates <= record_tokens", "true"),
    ("sample_race.cuh", "is_finite &= four[i] < INFINITY", "is_finite &= true"),
    ("sample_tile.cuh", "is_finite &= x[i] < INFINITY", "is_finite &= true"),
    ("sample_tile.cuh", "x[i] > largest", "x[i] >= largest"),
    ("sample_tile.cuh", "load_logits(x, tile.row, at + step,", "load_logits(x, tile.row, at,"),
    ("sample_tile.cuh", "min(first + tile_size, vocab_size)", "min(first + tile_size / 2, vocab_size)"),
    ("sample_order.cuh", "| ~token_id", "| token_id"),
    ("sample_order.cuh", "x < INFINITY ? x : INFINITY", "x"),
    ("sample_select.cuh", "at < goal && goal <= at + sum", "at <= goal && goal < at + sum"),  # off by one
    ("sample_select.cuh", "at < goal && goal <= at + amount", "at <= goal && goal < at + amount"),
    ("sample_select.cuh", "(before + lower < lower)", "0"),  # a carry is lost
    ("sample_select.cuh", "s.few[i].place < place", "s.few[i].place <= place"),
    ("sample_select.cuh", "place <= from.last && place != everything", "place != everything"),
    ("sample_select.cuh", "min(from.last, ((prefix + 1) << shift) - 1)", "((prefix + 1) << shift) - 1"),
    ("sample_select.cuh", "s.num_listed <= LIST_SIZE", "true"),
    ("sample_select.cuh", "place >> shift > prefix", "place >> shift >= prefix"),
    ("sample_cut.cu", "max(whole + (double(whole) < goal), uint64_t(1))", "whole + (double(whole) < goal)"),
    ("sample_cut.cu", "expf(-distance) < row.min_p", "expf(-distance) <= row.min_p"),
    ("sample_cut.cu", "is_limited ? sure : all", "all"),
    ("sample_cut.cu", "plan.mass_after = total - s.before - s.histogram.sum(plan.first)", "plan.mass_after = 0"),
    ("sample_cut.cu", "bucket > first ||", "bucket > first + 1 ||"),
    ("sample_cut.cu", "first == plan.last && selection.histogram.sum(bucket) == its_own", "first == plan.last"),
    ("sample_cut.cu", "plan.last + 1", "plan.last"),
    ("sample_cut.cu", "plan.num_listed <= LIST_SIZE", "true"),
    ("sample_cut.cu", "mass_before + total + mass_after", "mass_before + total"),
    ("sample_cut.cu", "is_mass ? mass_before : count_before", "mass_before"),
    ("sample_cut.cu", "reciprocal, near)", "0.0f, near)"),
    ("sample_cut.cu", "if (!is_usual) distances[i]", "if (false) distances[i]"),
    ("sample_cut.cu", "if (!(x[i] >= lowest)) distances[i] = INFINITY", "if (!(x[i] >= lowest)) {}"),
    ("sample_cut.cu", "row_masses[i] = 0;", "row_masses[i] += 0;"),
    ("sample_cut.cu", "plans[b].is_open = false", "plans[b].is_open = true"),
    ("sample_order.cuh", "above - below > 1", "above - below > 0x100000"),
    ("sample_cut.cu", "is_limited ? sure : all", "uint64_t(0x1p44f)"),
    ("logprobs.cu", "x > of_chosen", "x >= of_chosen"),
    ("logprobs.cu", "(k + THREADS / warp_size - 1) / (THREADS / warp_size)", "1"),
    ("logprobs.cu", "__ffs(int(lanes)) - 1", "0"),
    ("logprobs.cu", "num_listed <= LIST_SIZE}", "true}"),
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


def run_races(device: Gpu, name: str, folder: str | None = None) -> None:
    """What the race check runs, in a process of its own: small steps with the kernels in ``folder``."""
    device = device_of(device, folder)
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
        test_sample.test_how_rows_are_cut_changes_no_token(device)


def races(name: str, folder: Path | None, cache_dir: Path) -> list[str]:
    verdict = sanitize(__name__, "races", Sanitizer.RACE, folder, cache_dir, name=name)
    return [str(finding) for finding in verdict.findings]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["argmax.cu", "sample.cu", "logprobs.cu", "penalties.cu"])
def test_the_race_check_finds_nothing(checked_mutant_cache: Path, name: str) -> None:
    assert races(name, None, checked_mutant_cache) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row"), [("argmax.cu", "row"), ("sample.cu", "b")])
def test_the_race_check_sees_an_arrival_that_publishes_nothing(
    tmp_path: Path, checked_mutant_cache: Path, name: str, row: str
) -> None:
    plant(
        tmp_path, name, f"is_last = is_last_arrival(counters + {row}, num_tiles);",
        f"is_last = atomicAdd(counters + {row}, 1u) == num_tiles - 1; if (is_last) counters[{row}] = 0;",
    )  # fmt: skip
    assert any("race" in finding for finding in races(name, tmp_path, checked_mutant_cache))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new"), SLIPS)
def test_a_slip_changes_results(tmp_path: Path, mutant_cache: Path, name: str, old: str, new: str) -> None:
    plant(tmp_path, name, old, new)
    assert is_broken(SCENARIOS[name], tmp_path, mutant_cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_kernels_as_they_are_pass_every_scenario(tmp_path: Path, mutant_cache: Path, name: str) -> None:
    assert not is_broken(SCENARIOS[name], copy_kernels(tmp_path), mutant_cache)
