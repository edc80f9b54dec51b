"""Typical slips in the projections and simple kernels: a test must notice. Missing barriers are in ``test_barriers``.

A mutant is judged by the tests themselves, called with a few fixed arguments. What values cannot show is shown by a
sanitizer in a process of its own: loads whose values go nowhere, and one buffer where there must be two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyvllm.device import Gpu
from tinyvllm.devices.emulator import Sanitizer
from tinyvllm_kernels.projection.tiling import LARGE_BATCH_ROWS, Tiling

from . import (
    sanitized,
    test_decode_chain,
    test_lm_head,
    test_parts_of_fused_ops,
    test_projections,
    test_qkv_rope_append,
    test_rope_append,
    test_simple_kernels,
    test_wide,
)
from .mutants import Scenario, copy_kernels, is_broken, plant, sanitize


def inner(test: Any) -> Callable[..., None]:
    """A hypothesis test as the plain function that it is."""
    return test.hypothesis.inner_test  # type: ignore[no-any-return]


def linear_scenario(device: Gpu, batch_rows: tuple[int, ...]) -> None:
    check_linear = inner(test_projections.test_a_linear_layer_is_its_definition)
    for layer in test_projections.LAYERS:
        rows = layer[2].batch_rows if isinstance(layer[2], Tiling) else layer[2]
        if rows in batch_rows:
            check_linear(device, layer, rows + 1, True, True, 5)  # more rows than a block takes


def gemv_scenario(device: Gpu) -> None:
    for layer, scale in zip(test_projections.NORMED_LAYERS[:4], (1.0, 1e-20, 1.0, 1.0), strict=True):
        inner(test_projections.test_gate_up_silu_is_the_composition_of_its_parts)(device, layer, 1, scale, 3)
    test_decode_chain.test_a_graph_of_dependent_launches_gives_the_bits_of_separate_ones(device, 1)
    linear_scenario(device, (1,))


def gemm_scenario(device: Gpu) -> None:
    for layer, scale in zip(test_projections.NORMED_LAYERS[4:7], (1.0, 1e-20, 1.0), strict=True):
        inner(test_projections.test_gate_up_silu_is_the_composition_of_its_parts)(device, layer, 12, scale, 3)
    test_decode_chain.test_a_graph_of_dependent_launches_gives_the_bits_of_separate_ones(device, 3)
    linear_scenario(device, (8, 16, 32))
    test_projections.test_a_launcher_can_be_called_again_at_once(device)


def large_scenario(device: Gpu) -> None:
    linear_scenario(device, LARGE_BATCH_ROWS)
    tests = test_projections
    inner(tests.test_gate_up_silu_is_the_composition_of_its_parts)(device, tests.NORMED_LAYERS[-1], 66, 1.0, 3)
    same_bits = inner(tests.test_a_row_has_the_same_bits_from_every_kernel_alone_in_company_and_in_any_place)
    for cut in tests.CUTS:
        same_bits(device, cut, 70, 0)


def wide_scenario(device: Gpu) -> None:
    """Rings that turn round, ragged ends, one split or several."""
    check_linear = inner(test_wide.test_a_linear_layer_is_its_definition)
    for layer, batch_rows in (((1024, 64), 64), ((2112, 64), 256), ((1096, 200), 64)):
        check_linear(device, layer, batch_rows, batch_rows - 5, True, 3)
    check_mlp = inner(test_wide.test_gate_up_silu_is_the_composition_of_its_parts)
    for mlp, batch_rows in (((2048, 8), 64), ((40, 136), 64)):
        check_mlp(device, mlp, batch_rows, batch_rows - 5, 1.0, 3)
    test_wide.test_dependent_launches_wait_for_what_they_read(device)
    test_wide.test_a_launcher_can_be_called_again_at_once(device)


def lm_head_scenario(device: Gpu) -> None:
    for head in (test_lm_head.HEADS[1], test_lm_head.HEADS[5], test_lm_head.HEADS[7]):
        inner(test_lm_head.test_logits_are_their_definition)(device, head, 5, 0)
        inner(test_lm_head.test_argmax_is_the_lowest_of_the_largest)(device, head, 5, 0)
    for head in (test_lm_head.HEADS[1], test_lm_head.HEADS[5]):
        test_lm_head.test_the_winner_is_found_wherever_it_is(device, head)
        test_lm_head.test_a_nan_anywhere_in_a_row_is_reported_for_that_row(device, head)
    inner(test_lm_head.test_argmax_is_the_lowest_of_the_largest)(device, test_lm_head.HEADS[0], 1, 0)
    test_lm_head.test_equal_logits_of_minus_infinity_give_token_zero(device)


def qkv_scenario(device: Gpu) -> None:
    for layer in test_qkv_rope_append.LAYERS[1:9]:
        inner(test_qkv_rope_append.test_it_is_the_composition_of_its_parts)(device, layer, 6, 16, 1, True, 0)
    test_qkv_rope_append.test_tokens_without_a_slot_leave_the_cache_alone(device)


def rope_scenario(device: Gpu) -> None:
    run = inner(test_rope_append.test_heads_are_normalised_rotated_and_appended)
    for head_dim in (16, 64, 80):
        run(device, head_dim, 2, 3, 7, 1 if head_dim == 64 else 8, 1, head_dim != 64, 0)
    dependent_scenario(device)


def parts_scenario(device: Gpu) -> None:
    tests = test_parts_of_fused_ops
    tests.test_the_parts_wait_for_each_other(device)
    for bad in (np.nan, np.inf):
        tests.test_a_corrupt_row_in_a_chain_is_reported(device, bad)
    for max_rows in (1, 8):
        inner(tests.test_logits_are_sums_of_products_that_are_not_rounded)(device, 520, 70, max_rows, max_rows, 0)
    inner(tests.test_add_is_its_definition)(device, 2112, 3, 0)
    inner(tests.test_greedy_ids_are_the_lowest_largest_or_minus_one)(device, 5000, 6, 0)


def simple_scenario(device: Gpu) -> None:
    for size in test_simple_kernels.SIZES[1:5]:
        inner(test_simple_kernels.test_embedding_copies_the_rows_of_the_tokens)(device, size, 3, 0)
        inner(test_simple_kernels.test_rms_norm_is_its_definition)(device, size, 3, 0)
        inner(test_simple_kernels.test_silu_mul_is_its_definition)(device, size, 3, 0)
        inner(test_simple_kernels.test_gelu_mul_is_its_definition)(device, size, 3, 0)
        inner(test_simple_kernels.test_scale_rounds_once)(device, size, 3, 0)
        inner(test_simple_kernels.test_norm_columns_is_its_definition_and_leaves_the_others)(device, size, 3, 0)
    test_simple_kernels.test_an_id_outside_of_the_vocabulary_becomes_a_row_of_nan_and_reads_nothing(device)
    test_simple_kernels.test_silu_of_a_very_negative_gate_is_zero_and_not_nan(device)
    dependent_scenario(device)


def dependent_scenario(device: Gpu) -> None:
    test_decode_chain.test_a_graph_of_dependent_launches_gives_the_bits_of_separate_ones(device, 1)
    test_simple_kernels.test_simple_kernels_wait_for_each_other(device)
    test_simple_kernels.test_the_row_kernels_of_other_families_wait_for_each_other(device)


SCENARIOS: dict[str, Scenario] = {
    "gemv_core.cuh": gemv_scenario,
    "gemm_small_core.cuh": gemm_scenario,
    "gemm_large_core.cuh": large_scenario,
    "lm_head.cu": lm_head_scenario,
    "qkv_rope_append.cu": qkv_scenario,
    "rotate.cuh": rope_scenario,
    "rope_append.cu": rope_scenario,
    "linear_residual.cu": lambda device: linear_scenario(device, (1, 8)),
    "gate_up_silu.cu": gemv_scenario,
    "activation.cuh": simple_scenario,
    "add.cu": parts_scenario,
    "mark_corrupt.cu": parts_scenario,
    "logits.cu": parts_scenario,
    "embedding.cu": simple_scenario,
    "rms_norm.cu": simple_scenario,
    "silu_mul.cu": simple_scenario,
    "gelu_mul.cu": simple_scenario,
    "scale.cu": simple_scenario,
    "gemm_wide_core.cuh": wide_scenario,
    "gate_up_silu_wide.cu": wide_scenario,
    "linear_residual_wide.cu": wide_scenario,
}

ADJACENT_PAIRS = (
    "for (int i = 0; i < 8; ++i) rotate(low[i], high[i], cos_table[angle + i], sin_table[angle + i]);",
    "for (int i = 0; i < 8; i += 2) rotate(low[i], low[i + 1], cos_table[angle + i], sin_table[angle + i]), "
    "rotate(high[i], high[i + 1], cos_table[angle + i], sin_table[angle + i]);",
)

SLIPS = [
    # A reduction that is wrong for row lengths that do not fill the lanes, or the chunks.
    ("gemv_core.cuh", "num_vectors % warp_size == 0", "true"),
    ("gemv_core.cuh", "step_ * warp_size + block_lane() < num_vectors",
     "step_ * warp_size + block_lane() < num_vectors / warp_size * warp_size"),  # the ragged end of a row
    ("gemv_core.cuh", "32 * half / rows", "16 * half / rows"),
    ("gemv_core.cuh", "offset = 16 / rows; offset", "offset = 8 / rows; offset"),
    ("gemv_core.cuh", "(i < tile_pairs ? low_ : high_)", "low_"),
    ("gemv_core.cuh", "tile_ += num_warps * gridDim.x", "tile_ += num_warps"),
    ("gemv_core.cuh", "low, warp_size / 2)", "low, warp_size / 4)"),
    ("gemv_core.cuh", "i * THREADS + threadIdx.x;\n        if (vector < num_vectors)",
     "threadIdx.x;\n        if (vector < num_vectors)"),
    ("gemv_core.cuh", "values[i] *= scale[i]", "values[i] *= 1.0f"),
    ("gemv_core.cuh", "squares += shared.x.set", "squares = shared.x.set"),
    ("gemv_core.cuh", "(1.0f / SIZE_K) + in.eps", "(1.0f / SIZE_K)"),
    ("gemm_small_core.cuh", "SIZE_K == SPLIT * split_stages * STAGE_K", "true"),
    ("gemm_small_core.cuh", "ceil_div(ceil_div(SIZE_K, STAGE_K), SPLIT)",
     "SIZE_K < STAGE_K * SPLIT ? 1 : SIZE_K / STAGE_K / SPLIT"),
    ("gemm_small_core.cuh", "(first + lane / 16)", "(first + 1 - lane / 16)"),
    ("gemm_small_core.cuh", "lane / 8 % 2) ^ row_swizzle ^ step", "lane / 8 % 2) ^ row_swizzle"),
    ("gemm_small_core.cuh", "i / chunk_steps * WARPS_PER_ROW * chunk_steps +", "i / chunk_steps * chunk_steps +"),
    ("gemm_small_core.cuh", "x[j + 1][0] = r[2], x[j + 1][1] = r[3]", "x[j + 1][0] = r[3], x[j + 1][1] = r[2]"),
    ("gemm_small_core.cuh", "column / stage_vectors % split_stages;", "0;"),
    ("gemm_small_core.cuh", "first_tile + int(gridDim.x) * block_tiles;", "first_tile + block_tiles;"),
    ("gemm_small_core.cuh", "if (has_next()) find_rows();", ""),
    ("gemm_small_core.cuh", "along < WARPS_PER_ROW; ++along", "along < 1; ++along"),
    ("gemm_small_core.cuh", "split < SPLIT; ++split", "split < SPLIT - 1; ++split"),
    ("gemm_small_core.cuh", "&& tile + units.tile(i) < num_tiles", ""),
    ("gemm_small_core.cuh", "int(blockIdx.z) * BATCH_ROWS;", "0;"),
    # Another order of K: only the bits tell.
    ("gemm_large_core.cuh", "within % chain_chunks * WARPS_PER_ROW + within / chain_chunks", "within"),
    ("gemm_large_core.cuh", "ceil_div(ceil_div(SIZE_K, STAGE_K), SPLIT)", "ceil_div(SIZE_K / STAGE_K, SPLIT)"),
    ("gemm_large_core.cuh", "is_whole || vector < num_vectors", "true"),
    ("gemm_large_core.cuh", "(first + within % in_group)", "first"),
    ("gemm_large_core.cuh", "item += int(gridDim.x);\n        if", "item += 1;\n        if"),
    ("gemm_large_core.cuh", "if (has_next()) find_rows();", ""),
    ("gemm_large_core.cuh", "span < SPLIT; ++span", "span < SPLIT - 1; ++span"),
    ("gemm_large_core.cuh", "(step * 2 + lane / 16) ^", "(step * 2 + 1 - lane / 16) ^"),
    ("gemm_large_core.cuh", "lane / 8 % 2) ^ row_swizzle", "lane / 8 % 2)"),
    ("gemm_large_core.cuh", "sums[first + j][which + 2]", "sums[first + j][3 - which]"),
    ("lm_head.cu", "other.index < index", "other.index > index"),  # the highest of equals
    ("lm_head.cu", "isnan(logit) ? Best{INFINITY, -1} : Best{logit, row}", "Best{logit, row}"),
    ("lm_head.cu", "int index = no_index", "int index = -1"),
    ("lm_head.cu", "values[warp][lane * 2 + which] = best.value", "values[warp][lane * 2 + 1 - which] = best.value"),
    ("lm_head.cu", "w += num_batch_tiles", "w += num_warps"),
    ("qkv_rope_append.cu", "TileRows{first, first + half_dim}", "TileRows{first, first + projection::tile_pairs}"),
    ("qkv_rope_append.cu", "place.low_row % HEAD_DIM;\n        early.cosine",
     "place.low_row % half_dim / 2;\n        early.cosine"),
    ("qkv_rope_append.cu", "if (head >= num_heads + num_kv_heads) return early;", ""),  # values turned too
    ("qkv_rope_append.cu", "{positions[row_of_x], slot_mapping[row_of_x]}", "{positions[0], slot_mapping[row_of_x]}"),
    ("rope_append.cu", *ADJACENT_PAIRS),
    ("rope_append.cu", "if (head < num_heads + num_kv_heads) {", "if (head < num_heads) {"),
    ("rope_append.cu", "* (1.0f / HEAD_DIM)", "* (0.5f / HEAD_DIM)"),
    ("rotate.cuh", "low * cosine - high * sine", "low * cosine + high * sine"),
    ("rotate.cuh", "slot / block_size,", "(slot + 1) / block_size,"),  # off by one block, at the end of each
    ("rotate.cuh", "if (slot < 0) return nullptr;", ""),
    ("linear_residual.cu", "low += to_float(early.low) + to_float(early.low_bias)", "low += to_float(early.low)"),
    ("gate_up_silu.cu", "silu(gate) * up", "silu(up) * gate"),
    ("activation.cuh", "__fdividef(x, 1.0f + __expf(-x))", "__expf(x) / (1.0f + __expf(x))"),
    ("embedding.cu", "id >= 0 && id < vocab_size", "id < vocab_size"),
    ("embedding.cu", "id >= 0 && id < vocab_size", "id >= 0 && id <= vocab_size"),
    ("rms_norm.cu", "* (1.0f / SIZE_E)", "* (1.0f / (num_steps * THREADS * 8))"),
    ("rms_norm.cu", "ceil_div(num_vectors, THREADS)", "num_vectors / THREADS"),
    ("rms_norm.cu", "* ROW_STRIDE;", "* SIZE_E;"),
    ("silu_mul.cu", "load16(gate_row + SIZE_F)", "load16(gate_row)"),
    ("gelu_mul.cu", "cubic * x * x", "cubic * x"),
    ("gelu_mul.cu", "load16(gate_row + SIZE_F)", "load16(gate_row)"),
    ("scale.cu", "if (vector >= num_vectors) return;", "if (vector > 0) return;"),
    ("gemm_wide_core.cuh", "int(blockIdx.y) * num_stages * stage_k", "int(blockIdx.y) * (num_stages - 1) * stage_k"),
    ("gemm_wide_core.cuh", "parity ^= 1;", ""),
    ("gemm_wide_core.cuh", "last = turn.slot;", ""),
    ("gemm_wide_core.cuh", "(group_warps * warp_size) * group_rows", "(group_warps * warp_size) * 0"),
    ("gemm_wide_core.cuh", "wgmma_begin();", ""),
    ("gemm_wide_core.cuh", "step < stage_k / 16", "step < stage_k / 16 - 1"),
    ("gemm_wide_core.cuh", "before - before % SPLIT + SPLIT", "SPLIT"),
    ("gate_up_silu_wide.cu", "silu(sums[j][which]) * sums[j][2 + which]",
     "silu(sums[j][2 + which]) * sums[j][which]"),
    ("gate_up_silu_wide.cu", "first_column / 8, k", "first_column / 4, k"),
    ("linear_residual_wide.cu", "int(blockIdx.y) * wide::part_rows", "0"),
    ("linear_residual_wide.cu", "outputs[row][column + k] + added[k]", "outputs[row][column + k]"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [Sanitizer.RACE, Sanitizer.BOUNDS])
@pytest.mark.parametrize("sample", sanitized.ALL)
def test_the_kernels_as_they_are_are_clean(checked_mutant_cache: Path, sample: str, sanitizer: Sanitizer) -> None:
    verdict = sanitize(sanitized.__name__, sample, sanitizer, None, checked_mutant_cache)
    assert verdict.is_clean, verdict.findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample", "name", "old", "new"),
    [
        ("gemv", "gemv_core.cuh", "if (vector < num_vectors) x[i]", "x[i]"),
        ("gemv", "gemv_core.cuh", "is_whole || step_ * warp_size + block_lane() < num_vectors", "true"),
        ("gemv", "gemv_core.cuh", "if (GUARD_ROWS)", "if (false)"),
        ("gemm", "gemm_small_core.cuh", "is_whole || vector < num_vectors", "true"),
        ("gemm", "gemm_small_core.cuh", "if (GUARD_ROWS)", "if (false)"),
        ("gemm", "gemm_small_core.cuh", "vector >= 0 && first_row + row < in.num_rows", "vector >= 0"),
        ("gemm", "gemm_small_core.cuh", "&& first_row + row < in.num_rows && vector >= 0", "&& vector >= 0"),
        ("large", "gemm_large_core.cuh", "is_whole || vector < num_vectors", "true"),
        ("large", "gemm_large_core.cuh", "&& first_row + i * rows_at_once < in.num_rows", ""),
        ("large", "gemm_large_core.cuh", "if (GUARD_ROWS)", "if (false)"),
        ("large", "gemm_large_core.cuh", "if (tile < num_tiles) store_sums", "store_sums"),
        ("wide", "gate_up_silu_wide.cu", "&& first_column + column < num_columns", ""),
        ("wide", "gate_up_silu_wide.cu", "first_row + row < num_rows &&", ""),
        ("wide", "linear_residual_wide.cu", "|| output >= num_outputs", ""),
        ("wide", "linear_residual_wide.cu", "first_row + row >= num_rows ||", ""),
        ("simple", "rms_norm.cu", "if (vector < num_vectors) values", "if (true) values"),
        ("simple", "silu_mul.cu", "if (column >= SIZE_F) return;", ""),
        ("simple", "rope_append.cu", "head < num_all && lane < vectors_per_half", "head < num_all"),
        ("simple", "rotate.cuh", "if (slot < 0) return nullptr;", ""),
    ],
)
def test_an_unguarded_load_or_store_is_out_of_bounds(
    tmp_path: Path, checked_mutant_cache: Path, sample: str, name: str, old: str, new: str
) -> None:
    plant(tmp_path, name, old, new)
    verdict = sanitize(sanitized.__name__, sample, Sanitizer.BOUNDS, tmp_path, checked_mutant_cache)
    kinds = " ".join(finding.kind for finding in verdict.findings)
    # Far beyond the end lies memory that was given back, or none.
    assert any(kind in kinds for kind in ("overflow", "use-after-free", "SEGV")), verdict.log[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new"), SLIPS)
def test_a_slip_changes_results(tmp_path: Path, mutant_cache: Path, name: str, old: str, new: str) -> None:
    plant(tmp_path, name, old, new)
    assert is_broken(SCENARIOS[name], tmp_path, mutant_cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_kernels_as_they_are_pass_every_scenario(tmp_path: Path, mutant_cache: Path, name: str) -> None:
    assert not is_broken(SCENARIOS[name], copy_kernels(tmp_path), mutant_cache)
