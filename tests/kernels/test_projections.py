"""linear, linear_residual and gate_up_silu against their definitions, on both cores."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Array, Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.layers import Norm
from tinyvllm.reference.silu_mul import silu_mul
from tinyvllm_kernels.projection.gate_up_silu import GateUpSilu
from tinyvllm_kernels.projection.linear import LinearRows
from tinyvllm_kernels.projection.linear_residual import LinearResidual
from tinyvllm_kernels.projection.logits import LogitsRows
from tinyvllm_kernels.projection.tiling import LARGE_BATCH_ROWS, Tiling, choose_tiling, invariant_tiling

from .support import (
    assert_close,
    bf16,
    dot_error,
    f64,
    get,
    linear_value,
    normed_dot_error,
    normed_product,
    once,
    poisoned,
    product,
    put,
    rows_of_many_scales,
)

EPS = 1e-5

linear = once(LinearRows)
linear_residual = once(LinearResidual)
gate_up_silu = once(GateUpSilu)

# in_features, out_features, how it is cut (a number: the default for so many rows). Between them: the hot shapes' rows,
# a few vectors, ragged rows, rows in several chunks, outputs that fill no tile or several, one tile a block or more.
# Few outputs where rows are long: only the reductions differ.
LAYERS: tuple[tuple[int, int, int | Tiling], ...] = (
    (2048, 24, 1),
    (8192, 6, 1),
    (192, 100, 1),
    (14336, 4, 1),
    (2112, 17, Tiling(1, rows_per_warp=2, blocks_per_sm=1, threads=128)),
    (4096, 9, Tiling(1, rows_per_warp=8, max_stages=2, blocks_per_sm=1)),
    (40, 7, Tiling(1, rows_per_warp=2, max_stages=1)),
    (2048, 40, 8),
    (8192, 6, 16),
    (2112, 17, Tiling(8, warps_per_row=4, rows_per_warp=16, split=3, stage_k=512)),
    (192, 100, Tiling(8, threads=128, warps_per_row=4, rows_per_warp=16, max_stages=2, blocks_per_sm=1)),
    (4096, 9, Tiling(16, threads=512, warps_per_row=8, rows_per_warp=32, split=2, stage_k=256)),
    (40, 7, Tiling(32, rows_per_warp=16, blocks_per_sm=1)),
    (8, 70, 32),
    (2112, 17, Tiling(64, warps_per_row=2, rows_per_warp=16, split=3, stage_k=128)),
    (4096, 9, Tiling(128, warps_per_row=4, rows_per_warp=16, split=2, stage_k=256, shares_rows=False)),
    (192, 300, Tiling(64, warps_per_row=4, rows_per_warp=16, stage_k=256, max_stages=3, threads=128)),
    (40, 7, 128),
)

NORMED_LAYERS: tuple[tuple[int, int, int | Tiling], ...] = (
    (2048, 32, 1),
    (192, 64, 1),
    (40, 32, replace(choose_tiling(40, 1), blocks_per_sm=None)),
    (4096, 32, Tiling(1, rows_per_warp=2, max_stages=3, threads=64, blocks_per_sm=1)),
    (2048, 64, replace(choose_tiling(2048, 8), blocks_per_sm=1)),
    (192, 64, 16),
    (2112, 32, Tiling(32, threads=192, warps_per_row=2, rows_per_warp=16, split=2)),
    (192, 320, 64),
)

# Warps and blocks that share a row; rows end within a block's part, within a warp's chunk, and leave warps without one.
CUTS = ((1, 1), (1, 3), (2, 3), (4, 2), (8, 1))

seeds = st.integers(0, 2**32 - 1)


def random_layer(rng: np.random.Generator, size_k: int, num_outputs: int) -> Array:
    return bf16(rng.standard_normal((num_outputs, size_k)) * 10.0 ** rng.uniform(-2, 2, (num_outputs, 1)))


def assert_linear_residual(got: Array, x: Array, weight: Array, bias: Array | None, residual: Array) -> None:
    expected = f64(residual) + product(x, linear_value(weight, bias))
    magnitude = np.abs(f64(x)) @ np.abs(f64(weight)).T + np.abs(f64(residual))
    if bias is not None:
        magnitude += np.abs(f64(bias))
    assert_close(got, expected, dot_error(magnitude, x.shape[1] + 2))


def assert_gate_up_silu(got: Array, x: Array, norm: Norm, weight: Array, num_products_rounded: int) -> None:
    """``num_products_rounded``: as of ``normed_dot_error``."""
    size_f = len(weight) // 2
    sums = normed_product(x, norm, linear_value(weight))
    expected = silu_mul(sums)  # type: ignore[arg-type]  # definitions take any float
    error = normed_dot_error(x, norm, weight, num_products_rounded)
    up, gate_error, up_error = np.abs(sums[:, size_f:]), error[:, :size_f], error[:, size_f:]
    # |silu(z)| <= |z| and |silu'(z)| <= 1.1; silu itself is good to a few roundings.
    gate = np.abs(sums[:, :size_f]) + gate_error
    assert_close(got, expected, 1.1 * gate_error * (up + up_error) + gate * (up_error + 1e-5 * up))


def tilings_of(warps_per_row: int, split: int) -> list[Tiling]:
    """Every kernel on the tensor cores, with one cut of K."""
    cut = Tiling(8, warps_per_row=warps_per_row, rows_per_warp=16, split=split, stage_k=64 * warps_per_row)
    small = [replace(cut, batch_rows=rows) for rows in (8, 16, 32)]
    large = [replace(cut, batch_rows=rows, blocks_per_sm=1) for rows in LARGE_BATCH_ROWS]
    large.append(replace(large[0], threads=128))
    return [*small, *large, *(replace(tiling, shares_rows=False) for tiling in large if split > 1)]


@settings(max_examples=60, deadline=None)
@given(
    layer=st.sampled_from(LAYERS),
    rows=st.integers(0, 130),
    has_bias=st.booleans(),
    is_residual=st.booleans(),
    seed=seeds,
)
def test_a_linear_layer_is_its_definition(
    device: Gpu, layer: tuple[int, int, int | Tiling], rows: int, has_bias: bool, is_residual: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size_k, num_outputs, cut = layer
    tiling = cut if isinstance(cut, Tiling) else choose_tiling(size_k, cut)
    rows = 1 if tiling.batch_rows == 1 else 1 + rows % (tiling.batch_rows + 3)  # at times more than a block's
    x, weight = rows_of_many_scales(rng, (rows, size_k)), random_layer(rng, size_k, num_outputs)
    bias = bf16(rng.standard_normal(num_outputs) * 100) if has_bias else None
    residual = rows_of_many_scales(rng, (rows, num_outputs))
    make = linear_residual if is_residual else linear
    run = make(device, in_features=size_k, out_features=num_outputs, max_rows=131, tiling=tiling)
    out = put(device, residual) if is_residual else poisoned(device, (rows, num_outputs))
    run(out, put(device, x), put(device, weight), None if bias is None else put(device, bias))

    if not is_residual:
        residual = np.zeros_like(residual)
    assert_linear_residual(get(device, out), x, weight, bias, residual)


@settings(max_examples=40, deadline=None)
@given(
    layer=st.sampled_from(NORMED_LAYERS),
    rows=st.integers(0, 130),
    x_scale=st.sampled_from((1.0, 1e-20, 1e12)),
    seed=seeds,
)
def test_gate_up_silu_is_the_composition_of_its_parts(
    device: Gpu, layer: tuple[int, int, int | Tiling], rows: int, x_scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size_k, size_f, cut = layer
    tiling = cut if isinstance(cut, Tiling) else choose_tiling(size_k, cut)
    rows = 1 if tiling.batch_rows == 1 else 1 + rows % (tiling.batch_rows + 3)
    x = bf16(f64(rows_of_many_scales(rng, (rows, size_k))) * x_scale)
    weight = bf16(rng.standard_normal((2 * size_f, size_k)) * 3 / size_k**0.5)
    norm = Norm(f64(bf16(rng.uniform(0.25, 4.0, size_k))), EPS)
    run = gate_up_silu(device, hidden_size=size_k, intermediate_size=size_f, eps=EPS, max_rows=131, tiling=tiling)
    out = poisoned(device, (rows, size_f))
    run(out, put(device, x), put(device, bf16(norm.weight)), put(device, weight))

    assert_gate_up_silu(get(device, out), x, norm, weight, int(tiling.batch_rows > 1))


@settings(max_examples=12, deadline=None)
@given(cut=st.sampled_from(CUTS), rows=st.integers(1, 150), seed=seeds)
def test_a_row_has_the_same_bits_from_every_kernel_alone_in_company_and_in_any_place(
    device: Gpu, cut: tuple[int, int], rows: int, seed: int
) -> None:
    """One order of K, whoever sums."""
    rng = np.random.default_rng(seed)
    size_k, num_outputs = 2120, 40
    x, weight = rows_of_many_scales(rng, (rows, size_k)), random_layer(rng, size_k, num_outputs)
    w = put(device, weight)

    def bits(tiling: Tiling, order: Array) -> Array:
        run = linear(device, in_features=size_k, out_features=num_outputs, max_rows=150, tiling=tiling)
        out = poisoned(device, (len(order), num_outputs))
        run(out, put(device, x[order]), w)
        return get(device, out).view(np.uint16)

    tilings = tilings_of(*cut)
    place = int(rng.integers(rows))
    alone = bits(tilings[0], np.array([place]))
    expected = bits(tilings[0], np.arange(rows))
    assert (alone[0] == expected[place]).all()
    for tiling in tilings[1:]:
        order = rng.permutation(rows)
        assert (bits(tiling, order) == expected[order]).all(), tiling


@given(
    size_k=st.integers(1, 2000).map(lambda vectors: 8 * vectors),
    num_outputs=st.integers(1, 200_000),
    arch=st.sampled_from((80, 90, 120)),
    may_split=st.booleans(),
)
def test_one_cut_of_k_serves_any_number_of_rows(size_k: int, num_outputs: int, arch: int, may_split: bool) -> None:
    tilings = [
        invariant_tiling(arch, size_k, max_rows, num_outputs=num_outputs, may_split=may_split)
        for max_rows in (1, 8, 9, 16, 32, 33, 64, 65, 256, 257, 16384)
    ]
    assert {(each.warps_per_row, each.split, each.stage_k) for each in tilings} == {
        (tilings[0].warps_per_row, tilings[0].split, tilings[0].stage_k)
    }
    assert all(each.batch_rows > 1 for each in tilings)  # one row's core sums in another order


def test_another_cut_gives_other_bits(device: Gpu) -> None:
    """Else the test above would hold whatever the kernels did."""
    rng = np.random.default_rng(0)
    x, w = put(device, bf16(rng.standard_normal((8, 2120)))), put(device, random_layer(rng, 2120, 40))
    seen = []
    for warps_per_row in (1, 2, 4, 8):
        tiling = tilings_of(warps_per_row, 1)[0]
        run = LogitsRows(device, hidden_size=2120, vocab_size=40, max_rows=8, tiling=tiling)
        out = poisoned(device, (8, 40), np.float32)
        run(out, x, w)
        seen.append(get(device, out).view(np.uint32))
    assert all((a != b).any() for a, b in combinations(seen, 2))


def test_rows_that_are_nan_do_not_touch_the_others(device: Gpu) -> None:
    rng = np.random.default_rng(0)
    x, weight, norm = rng.standard_normal((5, 192)), random_layer(rng, 192, 64), put(device, bf16(np.ones(192)))
    x[2] = np.nan
    run = gate_up_silu(device, hidden_size=192, intermediate_size=32, eps=EPS, max_rows=8)
    out = put(device, bf16(np.zeros((5, 32))))
    run(out, put(device, bf16(x)), norm, put(device, weight))
    assert np.isnan(f64(get(device, out))).all(axis=1).tolist() == [False, False, True, False, False]


def test_a_launcher_can_be_called_again_at_once(device: Gpu) -> None:
    """The counters of a split reduction are zero again, and nothing of the last call is left."""
    rng = np.random.default_rng(0)
    x, weight = put(device, bf16(rng.standard_normal((8, 8192)))), put(device, random_layer(rng, 8192, 6))
    residual = put(device, bf16(np.zeros((8, 6))))
    run = linear_residual(
        device,
        in_features=8192,
        out_features=6,
        max_rows=8,
        tiling=Tiling(8, warps_per_row=8, rows_per_warp=16, split=4, stage_k=256),
    )
    seen = []
    for _ in range(3):
        device.memory.fill(residual, 0)
        device.synchronize()
        run(residual, x, weight)
        seen.append(get(device, residual).view(np.uint16))
    assert (seen[0] == seen[1]).all()
    assert (seen[0] == seen[2]).all()


def test_what_does_not_fit_is_refused(device: Gpu) -> None:
    with pytest.raises(ShapeError, match="multiple of 8"):
        LinearRows(device, in_features=20, out_features=8)
    with pytest.raises(ShapeError, match="batch_rows is 4"):
        choose_tiling(64, 4)
    with pytest.raises(ShapeError, match="shared memory"):
        LinearRows(
            device, in_features=4096, out_features=64, max_rows=8, tiling=Tiling(8, rows_per_warp=64, stage_k=512)
        )
    with pytest.raises(ShapeError, match="16 rows a warp"):
        Tiling(8)
    with pytest.raises(ShapeError, match="each 8 of batch_rows"):
        Tiling(32, threads=64, rows_per_warp=16)
    run = linear(
        device, in_features=40, out_features=7, max_rows=40, tiling=Tiling(32, rows_per_warp=16, blocks_per_sm=1)
    )
    with pytest.raises(ShapeError, match="whole chunks of 64"):
        Tiling(64, warps_per_row=2, stage_k=64)
    with pytest.raises(ShapeError, match="1 to 40"):
        run(poisoned(device, (41, 7)), poisoned(device, (41, 40)), poisoned(device, (7, 40)))
