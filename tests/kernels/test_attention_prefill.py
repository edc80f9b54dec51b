"""attention_prefill against the definition of paged attention in float64, and what must not change its result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Gpu
from tinyvllm.errors import ShapeError
from tinyvllm_attention.gpu.attention_prefill import prefill_flops

from .attention_cases import (
    ADVANCE,
    LAYOUTS,
    bits,
    decode,
    make_case,
    make_decode,
    make_prefill,
    padding_of,
    permuted,
    prefill,
    sizes_of,
)
from .support import assert_close, bf16, f64, get, poisoned, put

Layout = tuple[int, int, int, int]

windows = st.one_of(st.none(), st.integers(1, 150))
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=20, deadline=None)
# Context before the chunk, and the chunk: none, one token, a tile's edge, more than a block's rows.
chunk = st.tuples(st.one_of(st.just(0), st.integers(0, 200)), st.one_of(st.integers(0, 3), st.integers(1, 90)))
chunks = st.lists(chunk, min_size=1, max_size=4).filter(lambda pairs: any(count for _, count in pairs))


@few
@given(layout=st.sampled_from(LAYOUTS), pairs=chunks, window=windows, seed=seeds)
def test_prefill_is_its_definition(
    device: Gpu, layout: Layout, pairs: list[tuple[int, int]], window: int | None, seed: int
) -> None:
    case = make_case(sizes_of(layout, window), [sum(pair) for pair in pairs], [count for _, count in pairs], seed)
    assert_close(prefill(device, case), case.expected(), case.error())


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_right_over_many_tiles_and_splits(device: Gpu, layout: Layout, batch_invariant: bool) -> None:
    case = make_case(sizes_of(layout, None, batch_invariant), [600, 1, 130], [6, 1, 40], seed=len(layout))
    assert_close(prefill(device, case), case.expected(), case.error())


@pytest.mark.parametrize("peak", [0.0, 30.0, 300.0])
def test_flat_and_very_peaked_softmaxes_hold(device: Gpu, peak: float) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [200, 70], [9, 70], seed=1, peak=peak)
    assert_close(prefill(device, case), case.expected(), case.error())


def test_huge_and_tiny_values_are_not_lost(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [200], [20], seed=2)
    scales = 10.0 ** np.linspace(-30, 30, case.value_cache.shape[-1])
    case = replace(case, value_cache=bf16(f64(case.value_cache) * scales))
    assert_close(prefill(device, case), case.expected(), case.error())


@pytest.mark.parametrize("count", [15, 16, 17, 31, 32, 33, 64, 65])
def test_edges_of_blocks_of_rows_are_right(device: Gpu, count: int) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [count, count + 63, count], [count, count, 0], seed=count)
    assert_close(prefill(device, case), case.expected(), case.error())


def test_more_sequences_than_threads_are_found(device: Gpu) -> None:
    sizes = replace(sizes_of(LAYOUTS[1]), max_batch=300)
    counts = [b % 3 for b in range(300)]
    case = make_case(sizes, [count + b % 5 for b, count in enumerate(counts)], counts, seed=3)
    assert_close(prefill(device, case), case.expected(), case.error())


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize(("num_tokens", "num_sequences"), [(1, 1), (16, 8), (200, 3)])
def test_a_step_that_is_padding_alone_writes_nothing(
    device: Gpu, num_tokens: int, num_sequences: int, batch_invariant: bool, window: int | None
) -> None:
    """Tokens that belong to no sequence; nothing of the cache, and no entry of the tables, is looked at."""
    sizes = sizes_of(LAYOUTS[0], window, batch_invariant)
    case = padding_of(sizes, num_sequences, num_tokens)
    kernel, out = make_prefill(device, sizes=sizes), poisoned(device, case.query.shape)
    arrays, ends = case.put(device), put(device, case.cu_seqlens_q)
    for min_queries in (1, 2):
        for is_plan_older in (False, True):
            kernel(out, *arrays, ends, min_queries=min_queries, is_plan_older=is_plan_older)
            assert np.isnan(f64(get(device, out))).all()


@few
@given(pairs=chunks, window=windows, seed=seeds)
def test_permuting_blocks_changes_nothing(
    device: Gpu, pairs: list[tuple[int, int]], window: int | None, seed: int
) -> None:
    sizes = sizes_of(LAYOUTS[0], window)
    case = make_case(sizes, [sum(pair) for pair in pairs], [count for _, count in pairs], seed)
    assert (bits(prefill(device, case)) == bits(prefill(device, permuted(case, seed)))).all()


@few
@given(layout=st.sampled_from(LAYOUTS[:2]), pairs=chunks, window=windows, count=st.integers(1, 40), seed=seeds)
def test_chunks_and_company_change_nothing(
    device: Gpu, layout: Layout, pairs: list[tuple[int, int]], window: int | None, count: int, seed: int
) -> None:
    case = make_case(sizes_of(layout, window), [sum(pair) for pair in pairs], [n for _, n in pairs], seed)
    together = bits(prefill(device, case))
    for b in np.flatnonzero(case.num_queries):
        alone = case.only([int(b)]).last_queries(count)
        rows = together[case.rows(int(b))][-len(alone.query) :]
        assert (bits(prefill(device, alone)) == rows).all()


@few
@given(layout=st.sampled_from(LAYOUTS[:3]), pairs=chunks, window=windows, seed=seeds)
def test_batch_invariant_decode_gives_the_bits_of_prefill(
    device: Gpu, layout: Layout, pairs: list[tuple[int, int]], window: int | None, seed: int
) -> None:
    sizes = sizes_of(layout, window, batch_invariant=True)
    # Through more than one split, too.
    case = make_case(sizes, [3 * before + n for before, n in pairs], [n for _, n in pairs], seed)
    some = case.only(np.flatnonzero(case.num_queries).tolist())
    last = bits(prefill(device, some))[some.cu_seqlens_q[1:] - 1]
    assert (bits(decode(device, some.last_queries(1))) == last).all()


@few
@given(pairs=chunks, window=windows, seed=seeds)
def test_batch_invariant_block_sizes_give_the_same_bits(
    device: Gpu, pairs: list[tuple[int, int]], window: int | None, seed: int
) -> None:
    sizes = sizes_of(LAYOUTS[0], window, batch_invariant=True)
    case = make_case(sizes, [sum(pair) for pair in pairs], [count for _, count in pairs], seed)
    _, k, block_size, d = case.key_cache.shape
    # Blocks of 64 in the order of the tables: each holds the four blocks of 16 that were next to one another.
    wide_tables = np.arange(case.block_tables.size // 4, dtype=np.int32).reshape(len(case.context_lens), -1)
    key, value = (
        cache[case.block_tables].reshape(-1, 4, k, block_size, d).swapaxes(1, 2).reshape(-1, k, 64, d)
        for cache in (case.key_cache, case.value_cache)
    )
    wide = replace(
        case, sizes=replace(sizes, block_size=64), key_cache=key, value_cache=value, block_tables=wide_tables
    )
    assert (bits(prefill(device, wide)) == bits(prefill(device, case))).all()


def test_a_replayed_graph_follows_the_ragged_ends(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [200, 150, 90], [40, 30, 20], seed=4)
    kernel = make_prefill(device, sizes=case.sizes)
    arrays = case.put(device)
    ends, out = put(device, case.cu_seqlens_q), poisoned(device, case.query.shape)
    with device.capture() as graph:
        kernel(out, *arrays, ends)
    for counts, lens in (([40, 30, 20], [200, 150, 90]), ([1, 80, 9], [180, 120, 90]), ([0, 0, 70], [0, 0, 70])):
        now = replace(
            case,
            query=case.query[: sum(counts)],
            cu_seqlens_q=np.cumsum([0, *counts]).astype(np.int32),
            context_lens=np.array(lens, np.int32),
        )
        device.memory.upload(arrays[4], now.context_lens)
        device.memory.upload(ends, now.cu_seqlens_q)
        device.memory.fill(out, 0xFF)
        graph.replay()
        got = get(device, out)
        assert_close(got[: sum(counts)], now.expected(), now.error())
        assert np.isnan(f64(got[sum(counts) :])).all()


def test_both_kernels_together_compute_a_mixed_step(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [140, 300, 9, 77, 2], [50, 1, 0, 1, 2], seed=5)
    out, ends = poisoned(device, case.query.shape), put(device, case.cu_seqlens_q)
    arrays = case.put(device)
    make_prefill(device, sizes=case.sizes)(out, *arrays, ends, min_queries=2)
    assert np.isnan(f64(get(device, out))).any(axis=(1, 2)).tolist() == [False] * 50 + [True] * 2 + [False] * 2
    make_decode(device, sizes=case.sizes)(out, *arrays, cu_seqlens_q=ends)
    assert_close(get(device, out), case.expected(), case.error())


def test_queries_of_a_dependent_launch_are_read_after_the_wait(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [100, 20], [30, 20], seed=6)
    kernel = make_prefill(device, sizes=case.sizes)
    query, rest = (arrays := case.put(device))[0], arrays[1:]
    ends = put(device, case.cu_seqlens_q)
    middle, out = poisoned(device, case.query.shape), poisoned(device, case.query.shape)
    kernel(middle, query, *rest, ends)
    kernel(out, middle, *rest, ends, is_plan_older=True)
    second = replace(case, query=get(device, middle))
    assert_close(get(device, out), second.expected(), second.error())


def test_a_plan_that_the_predecessor_writes_is_read_after_the_wait(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [100, 65], [30, 20], seed=9)
    kernel = make_prefill(device, sizes=case.sizes)
    query, key, value, tables, lens = case.put(device)
    ends = put(device, case.cu_seqlens_q)
    out, later = (poisoned(device, case.query.shape) for _ in range(2))
    advance = device.compile(ADVANCE).function("advance")
    device.memory.upload(lens, case.context_lens - np.int32(1))
    device.launch(advance, (1, 1, 1), (32, 1, 1), (lens, np.int32(2)))
    kernel(out, query, key, value, tables, lens, ends)
    kernel(later, query, key, value, tables, lens, ends, is_plan_older=True)  # the next layer's: it does not wait
    for each in (out, later):
        assert_close(get(device, each), case.expected(), case.error())


def test_wrong_shapes_are_refused(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [40, 30], [2, 1], seed=7)
    kernel = make_prefill(device, sizes=case.sizes)
    out, arrays = poisoned(device, case.query.shape), case.put(device)
    with pytest.raises(ShapeError, match=r"cu_seqlens_q has shape \[2\], expected \[3\]"):
        kernel(out, *arrays, put(device, case.cu_seqlens_q[:2]))
    with pytest.raises(ShapeError, match=r"out has shape"):
        kernel(out.view((2, 8, 64)), *arrays, put(device, case.cu_seqlens_q))
    small = make_prefill(device, sizes=replace(case.sizes, max_batch=1))
    with pytest.raises(ShapeError, match=r"compiled for 1 to 1"):
        small(out, *arrays, put(device, case.cu_seqlens_q))


def test_the_flops_of_a_call_count_only_what_is_visible() -> None:
    assert prefill_flops(sizes_of((8, 2, 64, 16)), [3], [10]) == 4 * (8 + 9 + 10) * 8 * 64
    assert prefill_flops(sizes_of((8, 2, 64, 16), 9), [3], [10]) == 4 * (8 + 9 + 9) * 8 * 64
