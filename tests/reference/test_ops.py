"""The NumPy definitions against float64 loops, with tolerances from dtype and length of the sums.

A float32 sum of n terms errs by at most about n * eps times the sum of magnitudes (Higham 2002, 3.1); elementwise
steps add a few eps each. ``u`` counts those roundings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import loops
from tinyvllm.batch import LayerCache
from tinyvllm.errors import ShapeError
from tinyvllm.layers import COLUMNS, ROWS, Norm, RotaryTable, linear_of
from tinyvllm.models.rotary import RotaryConfig, inverse_frequencies, rotary_table
from tinyvllm.reference.embedding import embedding
from tinyvllm.reference.gelu_mul import gelu_mul
from tinyvllm.reference.kv_append import kv_append
from tinyvllm.reference.linear import linear, linear_in_tiles
from tinyvllm.reference.norm_columns import norm_columns
from tinyvllm.reference.rms_norm import rms_norm
from tinyvllm.reference.rope import rope
from tinyvllm.reference.scale import scale
from tinyvllm.reference.silu_mul import silu_mul

EPS = float(np.finfo(np.float32).eps)
SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


def rounded(seed: int, *shape: int, scale: float = 1.0) -> Any:
    """Normal float32 numbers, some of them large and some tiny."""
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.integers(-2, 3, shape)
    return (rng.standard_normal(shape) * spread * scale).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 6), width=SIZES, eps=st.sampled_from([1e-6, 1e-5, 0.1]), seed=SEEDS)
def test_rms_norm(rows: int, width: int, eps: float, seed: int) -> None:
    x, weight = rounded(seed, rows, width), rounded(seed + 1, width)
    want = loops.rms_norm(x, weight, eps)
    assert np.all(np.abs(rms_norm(x, Norm(weight, eps)) - want) <= (width / 2 + 6) * EPS * np.abs(want))


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not rms_norm(np.zeros((2, 8), np.float32), Norm(np.ones(8, np.float32), 1e-5)).any()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    inner=SIZES,
    outer=st.integers(1, 12),
    has_bias=st.booleans(),
    tiled=st.booleans(),
    by_columns=st.booleans(),
    seed=SEEDS,
)
def test_linear(rows: int, inner: int, outer: int, has_bias: bool, tiled: bool, by_columns: bool, seed: int) -> None:
    x, weight = rounded(seed, rows, inner), rounded(seed + 1, inner, outer)
    bias = rounded(seed + 2, outer) if has_bias else None
    want = loops.linear(x, weight, bias)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weight) + (0 if bias is None else np.abs(bias))
    layer = linear_of(weight, bias, COLUMNS) if by_columns else linear_of(np.ascontiguousarray(weight.T), bias, ROWS)
    got = (linear_in_tiles if tiled else linear)(x, layer)
    assert np.all(np.abs(got - want) <= (inner + 2) * EPS * magnitude)


def test_linear_by_single_rows_of_a_large_matrix_agrees() -> None:
    x, weight = rounded(1, 3, 1024, scale=0.01), rounded(2, 1024, 1100, scale=0.01)
    exact = x.astype(np.float64) @ weight
    bound = 1026 * EPS * (np.abs(x).astype(np.float64) @ np.abs(weight))
    assert np.all(np.abs(linear(x, linear_of(weight, scheme=COLUMNS)) - exact) <= bound)


@settings(max_examples=60, deadline=None)
@given(num_rows=st.integers(1, 30), data=st.data(), seed=SEEDS)
def test_a_row_in_tiles_has_the_same_bits_wherever_it_stands(num_rows: int, data: st.DataObject, seed: int) -> None:
    inner, outer = data.draw(st.sampled_from([(5, 3), (48, 80), (80, 33), (192, 256)]))
    x, layer = rounded(seed, num_rows, inner), linear_of(rounded(seed + 1, inner, outer), scheme=COLUMNS)
    whole = linear_in_tiles(x, layer)
    order = np.random.default_rng(seed).permutation(num_rows)
    assert np.array_equal(linear_in_tiles(x[order], layer), whole[order])
    row = data.draw(st.integers(0, num_rows - 1))
    assert np.array_equal(linear_in_tiles(x[row : row + 1], layer)[0], whole[row])


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 6),
    heads=st.integers(1, 4),
    half=st.integers(1, 20),
    rotary=st.sampled_from(
        [RotaryConfig(10000.0), RotaryConfig(500.0, "linear", 4.0), RotaryConfig(5e5, "llama3", 32.0, 1.0, 4.0, 64.0)]
    ),
    seed=SEEDS,
)
def test_rope(tokens: int, heads: int, half: int, rotary: RotaryConfig, seed: int) -> None:
    x = rounded(seed, tokens, heads, 2 * half)
    positions = np.random.default_rng(seed).integers(0, 200, tokens).astype(np.int32)
    frequencies = inverse_frequencies(rotary, 2 * half).astype(np.float32)
    got = rope(x, positions, RotaryTable(*rotary_table(rotary, 2 * half, 200)))
    want = loops.rope(x, positions, frequencies)
    # The angle is rounded once: at most eps/2 of it, times the pair's magnitude; then three roundings.
    pair = np.hypot(x[..., :half].astype(np.float64), x[..., half:])
    bound = np.concatenate([pair, pair], axis=-1) * EPS * (positions[:, None, None] * frequencies.max() / 2 + 4)
    assert np.all(np.abs(got - want) <= bound)


def test_rope_pairs_halves_not_neighbours() -> None:
    table = RotaryTable(*rotary_table(RotaryConfig(100.0), 4, 8))
    x = np.array([[[1.0, 0.0, 0.0, 0.0]]], np.float32)
    turned = rope(x, np.array([3], np.int32), table)[0, 0]
    assert turned[1] == 0.0
    assert turned[2] == pytest.approx(np.sin(3.0), rel=4 * EPS)


def test_llama3_scaling_keeps_short_and_stretches_long_wavelengths() -> None:
    plain = inverse_frequencies(RotaryConfig(5e5), 64)
    scaled = inverse_frequencies(RotaryConfig(5e5, "llama3", 32.0, 1.0, 4.0, 8192.0), 64)
    wavelength = 2 * np.pi / plain
    assert np.array_equal(scaled[wavelength < 8192 / 4], plain[wavelength < 8192 / 4])
    assert np.allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 32, rtol=1e-15)
    between = (wavelength > 8192 / 4) & (wavelength < 8192)
    assert between.any()
    assert np.all((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 32))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 6), half=SIZES, seed=SEEDS)
def test_silu_mul(rows: int, half: int, seed: int) -> None:
    gate_up = rounded(seed, rows, 2 * half)
    want = loops.silu_mul(gate_up)
    # Below -88.7 exp(-gate) overflows and silu becomes 0, where its magnitude is under 89 * 3e-39, 32 times tiny.
    bound = 8 * EPS * np.abs(want) + 32 * np.finfo(np.float32).tiny * np.abs(gate_up[:, half:])
    assert np.all(np.abs(silu_mul(gate_up) - want) <= bound)


def test_silu_of_very_negative_gates_is_zero_not_nan() -> None:
    assert silu_mul(np.array([[-1e4, -3e38, 2.0, 2.0]], np.float32)).tolist() == [[0.0, 0.0]]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 6), half=SIZES, seed=SEEDS)
def test_gelu_mul(rows: int, half: int, seed: int) -> None:
    gate_up = rounded(seed, rows, 2 * half)
    # 1 + tanh has the absolute error of one where the gate is far below zero.
    bound = 8 * EPS * np.abs(gate_up[:, :half].astype(np.float64) * gate_up[:, half:])
    assert np.all(np.abs(gelu_mul(gate_up) - loops.gelu_mul(gate_up)) <= bound)


def test_gelu_of_gates_whose_cubes_overflow_is_the_gate_or_zero() -> None:
    assert gelu_mul(np.array([[-1e30, 1e30, 2.0, 2.0]], np.float32)).tolist() == [[0.0, np.float32(2e30)]]


def test_scale_multiplies_in_place() -> None:
    x = rounded(1, 3, 5)
    want = x * np.float32(0.3)
    assert scale(x, 0.3) is x
    assert np.array_equal(x, want)


def test_norm_columns_is_rms_norm_of_these_and_leaves_the_others() -> None:
    x, norm = rounded(1, 3, 12), Norm(rounded(2, 4), 1e-5)
    before = x.copy()
    norm_columns(x, 6, norm)
    assert np.array_equal(x[:, 6:10], rms_norm(before[:, 6:10], norm))
    assert np.array_equal(np.delete(x, range(6, 10), 1), np.delete(before, range(6, 10), 1))


def test_embedding_copies_rows() -> None:
    table = rounded(3, 7, 5)
    got = embedding(np.array([6, 0, 6], np.int32), table)
    assert np.array_equal(got, table[[6, 0, 6]])
    got += 1
    assert not np.shares_memory(got, table)


@settings(max_examples=40, deadline=None)
@given(block_size=st.sampled_from([1, 2, 8]), tokens=st.integers(1, 9), seed=SEEDS)
def test_kv_append_writes_its_slots_and_nothing_else(block_size: int, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    slots = rng.permutation(12 * block_size)[:tokens].astype(np.int32)
    key, value = rounded(seed, len(slots), 2, 4), rounded(seed + 1, len(slots), 2, 4)
    cache = LayerCache(
        np.full((12, 2, block_size, 4), np.nan, np.float32), np.full((12, 2, block_size, 4), np.nan, np.float32)
    )
    kv_append(key, value, cache, slots)
    for t, slot in enumerate(slots):
        assert np.array_equal(cache.key[slot // block_size, :, slot % block_size], key[t])
        assert np.array_equal(cache.value[slot // block_size, :, slot % block_size], value[t])
    assert np.count_nonzero(~np.isnan(cache.key)) == key.size


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeError, match=r"rms_norm weight has shape \[3\], expected \[4\]"):
        rms_norm(np.zeros((1, 4), np.float32), Norm(np.ones(3, np.float32), 1e-5))
    with pytest.raises(ShapeError, match=r"linear input has shape \[1, 4\], expected \[any, 3\]"):
        linear(np.zeros((1, 4), np.float32), linear_of(np.ones((2, 3), np.float32)))
