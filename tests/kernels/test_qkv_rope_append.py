"""qkv_rope_append against the composition of norm, linear, rope and kv_append, on both cores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.layers import Norm
from tinyvllm_kernels.projection.qkv_rope_append import QkvRopeAppend
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling

from .paging import assert_appended, put_step, random_step, rotation_error
from .support import (
    assert_close,
    bf16,
    f64,
    get,
    linear_value,
    normed_dot_error,
    normed_product,
    once,
    poisoned,
    put,
    rows_of_many_scales,
)

EPS = 1e-5

make = once(QkvRopeAppend)

# E, H, K, D, rows of the default tiling: every head size, the hot row length, the demo's sizes, ragged rows; then
# several tiles a block.
LAYERS = (
    (2048, 2, 1, 64, 1),
    (192, 4, 2, 64, 1),
    (40, 3, 1, 16, 1),
    (192, 1, 1, 80, 1),
    (2112, 2, 1, 32, 1),
    (2048, 2, 1, 64, 8),
    (192, 4, 2, 64, 16),
    (40, 3, 1, 16, 32),
    (192, 5, 1, 80, 8),
    (96, 1, 1, 96, 8),
    (64, 2, 2, 128, 8),
)


def tiling_of(layer: tuple[int, int, int, int, int], is_looped: bool) -> Tiling | None:
    """None, the default; or as the default, with few blocks that do several tiles each."""
    size_k, _, _, _, rows = layer
    return replace(choose_tiling(size_k, rows), blocks_per_sm=1) if is_looped else None


@settings(max_examples=60, deadline=None)
@given(
    layer=st.sampled_from(LAYERS),
    rows=st.integers(1, 40),
    block_size=st.sampled_from((8, 16, 64)),
    padding=st.integers(0, 2),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_composition_of_its_parts(
    device: Gpu, layer: tuple[int, int, int, int, int], rows: int, block_size: int, padding: int, has_bias: bool,
    seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    size_k, h, k, d, max_rows = layer
    rows = 1 + rows % max_rows
    x = rows_of_many_scales(rng, (rows, size_k))
    weight = bf16(rng.standard_normal(((h + 2 * k) * d, size_k)) / size_k**0.5)
    bias = bf16(rng.standard_normal(len(weight)) * 10) if has_bias else None
    norm = Norm(f64(bf16(rng.uniform(0.25, 4.0, size_k))), EPS)
    step = random_step(rng, rows, k, d, block_size, min(padding, rows))
    buffers, query = put_step(device, step), poisoned(device, (rows, h, d))
    run = make(
        device, hidden_size=size_k, num_heads=h, num_kv_heads=k, head_dim=d, eps=EPS, max_rows=max_rows,
        tiling=tiling_of(layer, is_looped=len(weight) > 200),
    )  # fmt: skip
    run(
        query, buffers.key_cache, buffers.value_cache, put(device, x), put(device, bf16(norm.weight)),
        put(device, weight), None if bias is None else put(device, bias), buffers.cos, buffers.sin,
        buffers.positions, buffers.slot_mapping,
    )  # fmt: skip

    heads = normed_product(x, norm, linear_value(weight, bias)).reshape(rows, -1, d)
    expected = step.expect(heads[:, :h], heads[:, h : h + k], heads[:, h + k :])
    error = normed_dot_error(x, norm, weight, int(max_rows > 1)).reshape(rows, -1, d)
    error += 2.0**-23 * np.abs(heads)  # the addition of the bias
    # A rotation mixes x[i] and x[i + D/2], by factors of at most 1.
    rotated = error + np.roll(error, d // 2, axis=2) + rotation_error(np.abs(heads).max())
    assert_close(get(device, query), expected, rotated[:, :h])
    assert_appended(device, buffers, step, rotated[:, h : h + k].max(), error[:, h + k :].max())


def test_tokens_without_a_slot_leave_the_cache_alone(device: Gpu) -> None:
    rng = np.random.default_rng(0)
    step = random_step(rng, 4, 1, 16, 8, padding=4)
    buffers = put_step(device, step)
    run = make(device, hidden_size=40, num_heads=3, num_kv_heads=1, head_dim=16, eps=EPS, max_rows=32)
    run(
        poisoned(device, (4, 3, 16)), buffers.key_cache, buffers.value_cache, put(device, bf16(np.ones((4, 40)))),
        put(device, bf16(np.ones(40))), put(device, bf16(np.ones((80, 40)))), None, buffers.cos, buffers.sin,
        buffers.positions, buffers.slot_mapping,
    )  # fmt: skip
    assert_appended(device, buffers, step, 0.0, 0.0)


def test_a_tile_that_crosses_heads_is_refused(device: Gpu) -> None:
    with pytest.raises(ShapeError, match="half of head_dim is 40"):
        QkvRopeAppend(
            device, hidden_size=64, num_heads=1, num_kv_heads=1, head_dim=80, eps=EPS,
            tiling=Tiling(1, rows_per_warp=32),
        )  # fmt: skip
