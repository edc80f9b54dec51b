"""rope_append against rope, kv_append and the norm of heads, in float64 on the same bfloat16 values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.layers import Norm
from tinyvllm.reference.rms_norm import rms_norm
from tinyvllm_kernels.rows.rope_append import RopeAppend

from .paging import assert_appended, put_step, random_step, rotation_error
from .support import F32_ROUNDOFF, assert_close, bf16, f64, get, once, poisoned, put

HEAD_DIMS = (16, 32, 64, 80, 96, 128)
EPS = 1e-6

make = once(RopeAppend)


@settings(max_examples=40, deadline=None)
@given(
    head_dim=st.sampled_from(HEAD_DIMS),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    num_tokens=st.integers(1, 9),
    block_size=st.sampled_from((1, 8, 16, 64)),
    padding=st.integers(0, 2),
    has_norms=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_heads_are_normalised_rotated_and_appended(
    device: Gpu, head_dim: int, num_kv_heads: int, group: int, num_tokens: int, block_size: int, padding: int,
    has_norms: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    h, k = num_kv_heads * group, num_kv_heads
    step = random_step(rng, num_tokens, k, head_dim, block_size, min(padding, num_tokens))
    qkv = bf16(rng.standard_normal((num_tokens, h + 2 * k, head_dim)) * 10.0 ** rng.uniform(-2, 2, (1, h + 2 * k, 1)))
    norms = bf16(rng.uniform(0.5, 2.0, (2, head_dim)))
    buffers, query = put_step(device, step), poisoned(device, (num_tokens, h, head_dim))
    make(device, num_heads=h, num_kv_heads=k, head_dim=head_dim, eps=EPS)(
        query, buffers.key_cache, buffers.value_cache, put(device, qkv.reshape(num_tokens, -1)),
        buffers.cos, buffers.sin, buffers.positions, buffers.slot_mapping,
        query_norm=put(device, norms[0]) if has_norms else None,
        key_norm=put(device, norms[1]) if has_norms else None,
    )  # fmt: skip
    parts = [f64(qkv[:, :h]), f64(qkv[:, h : h + k])]
    if has_norms:
        parts = [rms_norm(x, Norm(f64(w), EPS)) for x, w in zip(parts, norms, strict=True)]  # type: ignore[misc,arg-type]
    expected = step.expect(parts[0], parts[1], f64(qkv[:, h + k :]))
    # The squares of a head are positive: relative error of its D roundings, of the largest element that a pair mixes.
    errors = [rotation_error(np.abs(x).max()) + has_norms * head_dim * F32_ROUNDOFF * np.abs(x).max() for x in parts]
    assert_close(get(device, query), expected, errors[0])
    assert_appended(device, buffers, step, errors[1], 0.0)


def test_one_norm_without_the_other_is_refused(device: Gpu) -> None:
    step = put_step(device, random_step(np.random.default_rng(0), 1, 1, 16, 8))
    norm = poisoned(device, (16,))
    with pytest.raises(ShapeError, match="go together"):
        make(device, num_heads=1, num_kv_heads=1, head_dim=16)(
            poisoned(device, (1, 1, 16)), step.key_cache, step.value_cache, poisoned(device, (1, 48)), step.cos,
            step.sin, step.positions, step.slot_mapping, query_norm=norm,
        )  # fmt: skip


@pytest.mark.parametrize("head_dim", [8, 24, 144])
def test_a_head_size_that_the_kernel_cannot_serve_is_refused(device: Gpu, head_dim: int) -> None:
    with pytest.raises(ShapeError, match="head_dim"):
        RopeAppend(device, num_heads=1, num_kv_heads=1, head_dim=head_dim)
