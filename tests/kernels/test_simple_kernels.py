"""Kernels of rows against their definitions in float64 on the same bfloat16 values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Array, Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.layers import Norm
from tinyvllm.reference.embedding import embedding
from tinyvllm.reference.gelu_mul import gelu_mul
from tinyvllm.reference.norm_columns import norm_columns
from tinyvllm.reference.rms_norm import rms_norm
from tinyvllm.reference.silu_mul import silu_mul
from tinyvllm.testing.numbers import silu_mul_error
from tinyvllm_kernels.rows.embedding import Embedding
from tinyvllm_kernels.rows.gelu_mul import GeluMul
from tinyvllm_kernels.rows.norm_columns import NormColumns
from tinyvllm_kernels.rows.rms_norm import RmsNorm
from tinyvllm_kernels.rows.rope_append import RopeAppend
from tinyvllm_kernels.rows.scale import Scale
from tinyvllm_kernels.rows.silu_mul import SiluMul

from .paging import put_step, random_step
from .support import F32_ROUNDOFF, assert_close, bf16, f64, get, once, poisoned, put, rows_of_many_scales

# Below a vector for each lane, ragged, the demo's, one vector a thread, more than one, ragged again.
SIZES = (8, 40, 192, 2048, 2112, 4096)
EPS = 1e-5

make_embedding = once(Embedding)
make_rms_norm = once(RmsNorm)
make_rope_append = once(RopeAppend)
make_silu_mul = once(SiluMul)
make_gelu_mul = once(GeluMul)
make_scale = once(Scale)
make_norm_columns = once(NormColumns)

cases = given(size=st.sampled_from(SIZES), num_rows=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
few = settings(max_examples=20, deadline=None)


@few
@cases
def test_embedding_copies_the_rows_of_the_tokens(device: Gpu, size: int, num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 2**16, (7, size), dtype=np.uint16).view(bf16(0).dtype)
    ids = rng.integers(0, 7, num_rows, dtype=np.int32)
    out = poisoned(device, (num_rows, size))
    make_embedding(device, hidden_size=size)(out, put(device, ids), put(device, table))
    assert (get(device, out).view(np.uint16) == embedding(ids, table.view(np.uint16))).all()


def test_an_id_outside_of_the_vocabulary_becomes_a_row_of_nan_and_reads_nothing(device: Gpu) -> None:
    table = bf16(np.ones((4, 40)))
    out = put(device, bf16(np.zeros((4, 40))))
    ids = np.array([-1, 3, 4, 2**31 - 1], np.int32)
    make_embedding(device, hidden_size=40)(out, put(device, ids), put(device, table))
    assert np.isnan(f64(get(device, out))).all(axis=1).tolist() == [True, False, True, True]


@few
@cases
def test_rms_norm_is_its_definition(device: Gpu, size: int, num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = rows_of_many_scales(rng, (num_rows, size)), rows_of_many_scales(rng, (1, size))[0]
    out = poisoned(device, x.shape)
    make_rms_norm(device, hidden_size=size, eps=EPS)(out, put(device, x), put(device, weight))
    expected = rms_norm(f64(x), Norm(f64(weight), EPS))  # type: ignore[arg-type]  # the definition in float64
    # The squares are all positive: a relative error of `size` roundings, halved by the root; a few more around it.
    assert_close(get(device, out), expected, (size + 8) * F32_ROUNDOFF * np.abs(expected))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e18])
def test_rms_norm_holds_for_rows_that_are_zero_tiny_or_huge(device: Gpu, scale: float) -> None:
    x = bf16(np.random.default_rng(0).standard_normal((3, 192)) * scale)
    out, weight = poisoned(device, x.shape), bf16(np.full(192, 2.0))
    make_rms_norm(device, hidden_size=192, eps=EPS)(out, put(device, x), put(device, weight))
    expected = rms_norm(f64(x), Norm(f64(weight), EPS))  # type: ignore[arg-type]
    assert_close(get(device, out), expected, 200 * F32_ROUNDOFF * np.abs(expected))


@few
@cases
def test_silu_mul_is_its_definition(device: Gpu, size: int, num_rows: int, seed: int) -> None:
    x = rows_of_many_scales(np.random.default_rng(seed), (num_rows, 2 * size))
    out = poisoned(device, (num_rows, size))
    make_silu_mul(device, intermediate_size=size)(out, put(device, x))
    expected = silu_mul(f64(x))  # type: ignore[arg-type]
    gate, up = np.split(f64(x), 2, axis=1)
    assert_close(get(device, out), expected, silu_mul_error(gate, up, np.zeros_like(gate), np.zeros_like(up)))


def test_silu_is_zero_where_the_hardwares_quotient_is(device: Gpu) -> None:
    """The exponential lies between 2^126 and infinity, on the emulator too."""
    gate_up = bf16([[-87.5, -88.0, -88.5] * 8 + [1e4] * 24])
    out = poisoned(device, (1, 24))
    make_silu_mul(device, intermediate_size=24)(out, put(device, gate_up))
    assert (get(device, out) == 0).all()


def test_silu_of_a_very_negative_gate_is_zero_and_not_nan(device: Gpu) -> None:
    gate_up = bf16([[-1e4] * 8 + [3.0] * 8])
    out = poisoned(device, (1, 8))
    make_silu_mul(device, intermediate_size=8)(out, put(device, gate_up))
    assert (get(device, out) == 0).all()


@few
@cases
def test_gelu_mul_is_its_definition(device: Gpu, size: int, num_rows: int, seed: int) -> None:
    x = rows_of_many_scales(np.random.default_rng(seed), (num_rows, 2 * size))
    out = poisoned(device, (num_rows, size))
    make_gelu_mul(device, intermediate_size=size)(out, put(device, x))
    expected = gelu_mul(f64(x))  # type: ignore[arg-type]
    gate, up = np.split(f64(x), 2, axis=1)
    assert_close(get(device, out), expected, 16 * F32_ROUNDOFF * np.abs(gate * up))


@few
@cases
def test_scale_rounds_once(device: Gpu, size: int, num_rows: int, seed: int) -> None:
    x = rows_of_many_scales(np.random.default_rng(seed), (num_rows, size))
    out = put(device, x)
    make_scale(device, hidden_size=size)(out, 0.3)
    assert (get(device, out) == bf16(x.astype(np.float32) * np.float32(0.3))).all()


@few
@cases
def test_norm_columns_is_its_definition_and_leaves_the_others(device: Gpu, size: int, num_rows: int, seed: int) -> None:
    rng, first = np.random.default_rng(seed), 16 * (seed % 2)
    x, weight = rows_of_many_scales(rng, (num_rows, size + 24)), rows_of_many_scales(rng, (1, size))[0]
    out = put(device, x)
    make_norm_columns(device, width=size + 24, first=first, size=size, eps=EPS)(out, put(device, weight))
    expected = norm_columns(f64(x), first, Norm(f64(weight), EPS))  # type: ignore[arg-type]
    bound = (size + 8) * F32_ROUNDOFF * np.abs(expected)
    bound[:, :first], bound[:, first + size :] = 0, 0
    assert_close(get(device, out), expected, bound)


def test_the_row_kernels_of_other_families_wait_for_each_other(device: Gpu) -> None:
    """Scale, norm of columns and activation in one graph, each on what the one before it has written."""
    rng = np.random.default_rng(0)
    start, weight = bf16(rng.standard_normal((2, 48))), put(device, bf16(np.full(16, 0.5)))
    x, active = put(device, start), poisoned(device, (2, 24))

    def run(after_each: Callable[[], None]) -> None:
        make_scale(device, hidden_size=48)(x, 3.0)
        after_each()
        make_norm_columns(device, width=48, first=8, size=16, eps=EPS)(x, weight)
        after_each()
        make_gelu_mul(device, intermediate_size=24)(active, x)
        after_each()
        make_scale(device, hidden_size=24)(active, 0.7)

    run(device.synchronize)
    separate = [get(device, buffer).view(np.uint16) for buffer in (x, active)]
    with device.capture() as graph:
        run(lambda: None)
    device.memory.upload(x, start)
    device.memory.fill(active, 0xFF)
    graph.replay()
    for buffer, expected in zip((x, active), separate, strict=True):
        assert (get(device, buffer).view(np.uint16) == expected).all()


def test_simple_kernels_wait_for_each_other(device: Gpu) -> None:
    """Embedding, norm, rotation and activation in one graph: each reads what the one before it has written."""
    rng = np.random.default_rng(0)
    table, weight = put(device, bf16(rng.standard_normal((7, 48)))), put(device, bf16(np.ones(48)))
    ids = put(device, np.array([3, 5], np.int32))
    x, normed, activated = (poisoned(device, (2, size)) for size in (48, 48, 24))
    step = put_step(device, random_step(rng, 2, 1, 16, 8))
    query = poisoned(device, (2, 1, 16))

    def run(after_each: Callable[[], None]) -> None:
        make_embedding(device, hidden_size=48)(x, ids, table)
        after_each()
        make_rms_norm(device, hidden_size=48, eps=EPS)(normed, x, weight)
        after_each()
        make_rope_append(device, num_heads=1, num_kv_heads=1, head_dim=16)(
            query, step.key_cache, step.value_cache, normed, step.cos, step.sin, step.positions, step.slot_mapping
        )
        make_silu_mul(device, intermediate_size=24)(activated, normed)

    def results() -> list[Array]:
        return [get(device, buffer).view(np.uint16) for buffer in (x, normed, query, step.key_cache, activated)]

    run(device.synchronize)
    separate = results()
    with device.capture() as graph:
        run(lambda: None)
    for buffer in (x, normed, query, activated):
        device.memory.fill(buffer, 0xFF)
    graph.replay()
    for got, expected in zip(results(), separate, strict=True):
        assert (got == expected).all()


def test_a_wrong_shape_or_dtype_is_refused_before_anything_runs(device: Gpu) -> None:
    x, weight = poisoned(device, (2, 192)), poisoned(device, (192,))
    norm = make_rms_norm(device, hidden_size=192, eps=EPS)
    with pytest.raises(ShapeError, match=r"rms_norm x has shape \[2, 96\]"):
        norm(poisoned(device, (2, 96)), poisoned(device, (2, 96)), weight)
    with pytest.raises(ShapeError, match="dtype float32"):
        norm(poisoned(device, (2, 192), np.float32), x, weight)
    with pytest.raises(ShapeError, match="multiple of 8"):
        RmsNorm(device, hidden_size=20, eps=EPS)
