"""Typical slips in the attention kernels: a test must notice. Missing barriers are in ``test_barriers``.

A mutant is judged by the tests themselves, called with a few fixed arguments. What values cannot show is shown by a
sanitizer in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinyvllm.device import Gpu
from tinyvllm.devices.emulator import Sanitizer

from . import attention_samples, test_attention_decode, test_attention_prefill
from .attention_cases import LAYOUTS
from .mutants import Scenario, copy_kernels, is_broken, plant, sanitize

TILE, DECODE, PREFILL = "attention_tile.cuh", "attention_decode.cu", "attention_prefill.cu"


def inner(test: Any) -> Callable[..., None]:
    """A hypothesis test as the plain function that it is."""
    return test.hypothesis.inner_test  # type: ignore[no-any-return]


def decode_scenario(device: Gpu) -> None:
    tests = test_attention_decode
    for batch_invariant in (False, True):
        tests.test_every_layout_is_right_through_the_split_path(device, LAYOUTS[0], batch_invariant)
        tests.test_only_sequences_with_one_token_are_computed_in_a_mixed_step(device, batch_invariant)
        tests.test_a_plan_that_the_predecessor_writes_is_read_after_the_wait(device, batch_invariant)
    tests.test_more_sequences_than_threads_are_planned(device, False)
    for layout in (LAYOUTS[1], LAYOUTS[6]):
        inner(tests.test_decode_is_its_definition)(device, layout, [600, 3, 64, 65, 300], 77, 1)
    tests.test_queries_of_a_dependent_launch_are_read_after_the_wait(device)
    tests.test_a_replayed_graph_follows_the_context_lengths(device)
    tests.test_a_sequence_without_context_gives_zeros(device, False)
    tests.test_rows_of_padding_alone_give_zeros(device, 3, False, None)
    tests.test_without_any_sequence_of_one_token_nothing_is_written(device, 3, False)
    tests.test_flat_and_very_peaked_softmaxes_hold(device, 30.0, False)
    # The second of these has more cuts than there are blocks.
    for lens in ([600, 3, 64, 300], [1000] * 5):
        inner(tests.test_batch_invariant_company_changes_nothing)(device, LAYOUTS[0], lens, None, 2)


def prefill_scenario(device: Gpu) -> None:
    tests = test_attention_prefill
    for layout in (LAYOUTS[0], LAYOUTS[1], LAYOUTS[6]):
        inner(tests.test_prefill_is_its_definition)(device, layout, [(100, 5), (0, 0), (3, 77), (70, 1)], 60, 1)
        # A warp of rows some of which see nothing of a tile: the window moves past the end of a tile within it.
        inner(tests.test_prefill_is_its_definition)(device, layout, [(100, 60), (3, 77)], 60, 1)
    tests.test_edges_of_blocks_of_rows_are_right(device, 33)
    inner(tests.test_batch_invariant_decode_gives_the_bits_of_prefill)(device, LAYOUTS[0], [(300, 3), (2, 40)], None, 3)
    inner(tests.test_chunks_and_company_change_nothing)(device, LAYOUTS[0], [(100, 60), (2, 40)], None, 7, 3)
    tests.test_both_kernels_together_compute_a_mixed_step(device)
    tests.test_queries_of_a_dependent_launch_are_read_after_the_wait(device)
    tests.test_a_plan_that_the_predecessor_writes_is_read_after_the_wait(device)
    tests.test_more_sequences_than_threads_are_found(device)
    tests.test_a_step_that_is_padding_alone_writes_nothing(device, 16, 8, False, None)


def both_scenarios(device: Gpu) -> None:
    decode_scenario(device)
    prefill_scenario(device)


SCENARIOS: dict[str, Scenario] = {
    TILE: both_scenarios, DECODE: decode_scenario, PREFILL: prefill_scenario
}  # fmt: skip

STARTS = "if (!is_plan_older) pdl_wait();  // lengths and ends may be new\n    pdl_launch_dependents();"
STARTS_EARLY = "pdl_launch_dependents();\n    if (!is_plan_older) pdl_wait();"

SLIPS = [
    (DECODE, STARTS, STARTS_EARLY),
    (PREFILL, STARTS, STARTS_EARLY),
    (TILE, "fmaf(s, scale, -base)", "s - base"),  # no scale
    (TILE, "position / block_size + lane;", "position / block_size + lane + 1;"),  # off by one block
    (TILE, "num_keys > block_size ? row / block_size : 0", "0"),
    (TILE, "+ p % block_size;", "+ row % block_size;"),
    (TILE, "(size_t(block) * cache.num_kv_heads + head)", "(size_t(block) + head)"),
    (TILE, "cache.value + slot * head_dim + column, is_visible", "cache.value + slot * head_dim + column, true"),
    (TILE, "visible.begin <= p && p < visible.end", "p < visible.end"),
    (TILE, "key < span.low", "key <= span.low"),
    (TILE, "key >= span.high", "key > span.high"),
    (TILE, "new_max == -INFINITY ? 0.0f : new_max;  // a row", "new_max;  // a row"),
    (TILE, "fmaf(rows.sum[r][half], shrink, tile_sum)", "rows.sum[r][half] + tile_sum"),
    (TILE, "rows.out[r][n][2 * half + 1] *= shrink;", ""),
    (TILE, "lane % 8 + lane / 16 * 8][k * 16 + lane / 8 % 2 * 8]", "lane % 16][k * 16 + lane / 16 * 8]"),
    (TILE, "ldmatrix_x4_trans", "ldmatrix_x4"),
    (TILE, "fmaf(part, factors.y, before * factors.x)", "fmaf(part, factors.y, before)"),
    (TILE, "fmaf(part_sum, factors.y, sum * factors.x)", "fmaf(part_sum, factors.y, sum)"),
    (TILE, "sum > 0.0f ? 1.0f / sum : 0.0f", "1.0f / sum"),
    (DECODE, "if (begin >= end) {", "if (begin > end) {"),
    (DECODE, "larger * (quotient + 1)", "larger * quotient"),
    (DECODE, "if (int(blockIdx.x) >= used) quotient = larger = 0;", ""),
    (DECODE, "piece.begin == piece.item_begin && piece.end == piece.item_end", "piece.end == piece.item_end"),
    (DECODE, "2 * (first_owner + i) + (i == 0 ? 1 : 0)", "2 * (first_owner + i)"),
    (DECODE, "shares.owner(piece.item_end - 1) - first_owner + 1", "shares.owner(piece.item_end - 1) - first_owner"),
    (DECODE, "max(0, length - sliding_window)", "max(0, length - sliding_window + 1)"),
    (DECODE, "cu_seqlens_q[b + 1] - cu_seqlens_q[b] != 1", "false"),
    (DECODE, "return max(1, ", "return max(0, "),
    (DECODE, "int before = scanned - num_chunks;", "int before = 0;"),
    (DECODE, "<= begin) ++sequence", "< begin) ++sequence"),
    (DECODE, "cut.is_cut ? begin + 1 : min(end, piece.item_end)", "min(end, piece.item_end)"),
    (DECODE, "const float sum = warp_sum<4>(rows.sum[0][0]);", "const float sum = rows.sum[0][0];"),
    (PREFILL, "range.position(row) + 1 - position", "range.position(row) - position"),
    (PREFILL, "range.position(row) + 1 - position", "range.position(row) + 2 - position"),
    (PREFILL, "position(row) - sliding_window + 1", "position(row) - sliding_window"),
    (PREFILL, "first_position + row / group_size", "first_position + row"),
    (PREFILL, "first_head + row % group_size", "first_head + row / 8 % group_size"),
    (PREFILL, "group_size / block_rows) + b;", "group_size / block_rows);"),
    (PREFILL, "return num_begun - 1;", "return num_begun - (num_begun > 1 ? 2 : 1);"),
    (PREFILL, "first < num_sequences; first += threads", "first < min(num_sequences, threads); first += threads"),
    (PREFILL, "position + tile_keys > all.end", "false"),
    (PREFILL, "position < all.begin ||", ""),
    (PREFILL, "position + tile_keys <= any.begin", "position + tile_keys <= all.begin"),
    (PREFILL, "(tile + 1) % split_tiles == 0 ||", ""),
    (PREFILL, "        rows.clear();\n    }\n};", "    }\n};"),
    (PREFILL, "num_rows <= 0 || num_queries < min_queries", "num_rows <= 0"),
    (PREFILL, "warp_sum<4>(rows.sum[r][half])};", "rows.sum[r][half]};"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [Sanitizer.RACE, Sanitizer.BOUNDS])
@pytest.mark.parametrize("sample", ["decode", "splits", "prefill", "padding"])
def test_the_kernels_as_they_are_are_clean(checked_mutant_cache: Path, sample: str, sanitizer: Sanitizer) -> None:
    verdict = sanitize(attention_samples.__name__, sample, sanitizer, None, checked_mutant_cache)
    assert verdict.is_clean, verdict.findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample", "name", "old", "new"),
    [
        ("decode", TILE, "return is_needed ? block_table[index] : 0;", "return block_table[index];"),
        ("decode", DECODE, "row < group_size ? *reinterpret_cast<const uint32_t*>(from + 8) : 0",
         "*reinterpret_cast<const uint32_t*>(from + 8)"),
        ("decode", DECODE, "if (row >= group_size) return;", ""),
        ("prefill", PREFILL, "(is_row ? address(rows.first + row) + column : 0), is_row",
         "address(rows.first + row) + column, true"),
        ("prefill", PREFILL, "if (row >= rows.count) continue;", ""),
    ],
)  # fmt: skip
def test_an_unguarded_load_or_store_is_out_of_bounds(
    tmp_path: Path, checked_mutant_cache: Path, sample: str, name: str, old: str, new: str
) -> None:
    plant(tmp_path, name, old, new)
    verdict = sanitize(attention_samples.__name__, sample, Sanitizer.BOUNDS, tmp_path, checked_mutant_cache)
    assert any("overflow" in finding.kind or "SEGV" in finding.kind for finding in verdict.findings), verdict.log[
        -2000:
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new"), SLIPS)
def test_a_slip_changes_results(tmp_path: Path, mutant_cache: Path, name: str, old: str, new: str) -> None:
    plant(tmp_path, name, old, new)
    assert is_broken(SCENARIOS[name], tmp_path, mutant_cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_kernels_as_they_are_pass_every_scenario(tmp_path: Path, mutant_cache: Path, name: str) -> None:
    assert not is_broken(SCENARIOS[name], copy_kernels(tmp_path), mutant_cache)
