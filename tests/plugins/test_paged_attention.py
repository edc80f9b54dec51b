from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.paged import make_step
from tests.reference import loops
from tinyvllm.batch import Batch, BatchTensors, LayerCache
from tinyvllm.devices.cpu import CpuDevice
from tinyvllm.errors import DeviceError
from tinyvllm.interfaces import AttentionCall, AttentionContext, AttentionSpec, PluginContext
from tinyvllm.reference.paged_attention import paged_attention
from tinyvllm.shapes import Float32, ModelShape
from tinyvllm.testing import check_op
from tinyvllm.workspace import StepLimits, Workspace
from tinyvllm_attention.paged import PagedAttention

EPS = float(np.finfo(np.float32).eps)
SPANS = st.lists(
    st.integers(1, 200).flatmap(lambda context: st.tuples(st.integers(1, min(context, 30)), st.just(context))),
    min_size=1,
    max_size=6,
)
HEADS = st.sampled_from([(4, 2, 16), (3, 3, 8), (8, 1, 32), (2, 1, 10)])


def attend(
    batch: Batch,
    cache: LayerCache,
    query: Float32,
    window: int | None,
    *,
    batch_invariant: bool,
) -> Float32:
    """The plugin's answer on the CPU."""
    num_kv_heads, block_size, head_dim = cache.key.shape[1:]
    spec = AttentionSpec(
        "cpu", query.shape[1], num_kv_heads, head_dim, block_size, "float32", head_dim**-0.5, window, batch_invariant
    )
    limits = StepLimits(4096, 64, 4096, block_size, 64, batch_invariant)
    attention = plugin(batch_invariant=batch_invariant)
    assert attention.supports(spec) == []
    bound = attention.bind(AttentionContext((spec,), Workspace(CpuDevice(), limits)))
    assert bound.host_plan(batch) is None
    step = BatchTensors(
        batch.token_ids, batch.positions, batch.slot_mapping, batch.context_lens, batch.block_tables, batch.cu_seqlens_q
    )
    out = np.full_like(query, np.nan)
    bound.forward(AttentionCall(out, query, cache, step, bound.plan(step, None), spec, is_first=True))
    return out


def plugin(device: str = "cpu", *, batch_invariant: bool = False) -> PagedAttention:
    """As an engine creates it."""
    shape = ModelShape(1, 8, 2, 1, 8, 8, 8, 4096)
    return PagedAttention(PluginContext(None, device, shape, 4096, 64, 4096, 8, batch_invariant, 0))


def bound(cache: LayerCache, query: Float32, longest: int) -> float:
    """Scores err by D * eps of their magnitude, which the exponential turns into a relative error; then two sums."""
    head_dim = query.shape[-1]
    largest = float(np.nanmax(np.abs(cache.key)) * np.abs(query).max() * head_dim**0.5)
    return float((2 * (head_dim + 2) * largest + 2 * longest + 8) * EPS * np.nanmax(np.abs(cache.value)))


@settings(max_examples=80, deadline=None)
@given(
    spans=SPANS,
    heads=HEADS,
    block_size=st.sampled_from([1, 2, 4, 16, 64]),
    window=st.one_of(st.none(), st.integers(1, 90)),
    batch_invariant=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_equals_the_definition(
    spans: list[tuple[int, int]],
    heads: tuple[int, int, int],
    block_size: int,
    window: int | None,
    batch_invariant: bool,
    seed: int,
) -> None:
    num_heads, num_kv_heads, head_dim = heads
    batch, cache, query = make_step(
        seed, block_size=block_size, num_kv_heads=num_kv_heads, head_dim=head_dim, num_heads=num_heads, spans=spans
    )
    want = paged_attention(query, cache, batch, head_dim**-0.5, window)
    got = attend(batch, cache, query, window, batch_invariant=batch_invariant)
    assert np.all(np.abs(got - want) <= bound(cache, query, max(c for _, c in spans)))


@settings(max_examples=15, deadline=None)
@given(context=st.integers(1, 40), window=st.one_of(st.none(), st.integers(1, 50)), seed=st.integers(0, 2**32 - 1))
def test_the_definition_equals_a_loop_over_the_formula(context: int, window: int | None, seed: int) -> None:
    batch, cache, query = make_step(
        seed, block_size=4, num_kv_heads=2, head_dim=6, num_heads=4, spans=[(min(context, 3), context)]
    )
    got = paged_attention(query, cache, batch, 6**-0.5, window)
    at = np.arange(context)
    for t, position in enumerate(batch.positions):
        seen = at[: position + 1][-(window or context) :]
        blocks, offsets = batch.block_tables[0, seen // 4], seen % 4
        for h in range(4):
            want = loops.attention(
                query[t, h], cache.key[blocks, h // 2, offsets], cache.value[blocks, h // 2, offsets], 6**-0.5
            )
            assert np.all(np.abs(got[t, h] - want) <= bound(cache, query, context))


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_permuting_blocks_changes_nothing(batch_invariant: bool) -> None:
    spans = [(1, 100), (5, 37), (1, 3)]
    batch, cache, query = make_step(1, block_size=8, num_kv_heads=2, head_dim=16, num_heads=4, spans=spans)
    before = attend(batch, cache, query, None, batch_invariant=batch_invariant)
    order = np.random.default_rng(2).permutation(len(cache.key)).astype(np.int32)
    moved = LayerCache(np.empty_like(cache.key), np.empty_like(cache.value))
    moved.key[order], moved.value[order] = cache.key, cache.value
    tables = np.where(batch.block_tables >= 0, order[np.maximum(batch.block_tables, 0)], batch.block_tables)
    blocks, offsets = np.divmod(batch.slot_mapping, 8)
    shuffled = Batch(
        batch.token_ids,
        batch.positions,
        batch.cu_seqlens_q,
        batch.context_lens,
        tables,
        order[blocks] * 8 + offsets,
    )
    assert np.array_equal(attend(shuffled, moved, query, None, batch_invariant=batch_invariant), before)


def test_long_chunks_are_taken_in_pieces() -> None:
    """More scores than are held at once, so that the loop over pieces runs more than once."""
    batch, cache, query = make_step(
        5, block_size=16, num_kv_heads=1, head_dim=4, num_heads=8, spans=[(300, 900), (1, 700)]
    )
    want = paged_attention(query, cache, batch, 0.5)
    assert np.all(np.abs(attend(batch, cache, query, None, batch_invariant=False) - want) <= bound(cache, query, 900))


@pytest.mark.parametrize("window", [None, 100])
def test_decode_rows_of_any_lengths_go_in_groups(window: int | None) -> None:
    """Long and short together; the longest are more than is gathered at once, the others several times as much."""
    contexts = [1, 40, 1200, 129, 700, 130, 1190, 64, 710, 690]
    batch, cache, query = make_step(
        6, block_size=16, num_kv_heads=8, head_dim=64, num_heads=16, spans=[(1, context) for context in contexts]
    )
    want = paged_attention(query, cache, batch, 0.125, window)
    got = attend(batch, cache, query, window, batch_invariant=False)
    assert np.all(np.abs(got - want) <= bound(cache, query, max(contexts)))


def test_it_says_what_it_cannot_serve() -> None:
    served = AttentionSpec("emulator", 4, 2, 64, 16, "bfloat16", 0.125, None, False)
    attention = plugin("emulator")
    assert attention.supports(served) == []
    refused = replace(served, num_heads=66, num_kv_heads=1, head_dim=48, block_size=4, dtype="float32")
    assert attention.supports(refused) == [
        "knows head_dim 16, 32, 64, 80, 96, 128, not 48",
        "at most 8 query heads share a KV head, not 66",
        "knows cache.block_size 8, 16, 32, 64, not 4",
        "computes with bfloat16, not float32",
    ]
    assert attention.supports(replace(refused, device="cpu")) == []


@pytest.mark.parametrize(("device", "num_cases"), [("cpu", 60), ("emulator", 10), ("cuda", 100)])
def test_it_is_its_definition_on_every_device_and_the_same_bits_in_any_company(device: str, num_cases: int) -> None:
    try:
        (outcome,) = check_op("attention", device=device, implementation="paged", num_cases=num_cases)
    except DeviceError as error:
        pytest.skip(str(error))
    assert outcome.is_right, outcome.failure
