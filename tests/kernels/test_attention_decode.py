"""attention_decode against the definition of paged attention in float64, and what must not change its result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Gpu
from tinyvllm.errors import ShapeError
from tinyvllm_attention.gpu.attention_decode import AttentionDecode, decode_bytes

from .attention_cases import (
    ADVANCE,
    LAYOUTS,
    MAX_CONTEXT,
    bits,
    decode,
    make_case,
    make_decode,
    padding_of,
    permuted,
    sizes_of,
)
from .support import assert_close, bf16, f64, get, poisoned, put

# A length of 600 is ten tiles: more than a block has stages, shared by several blocks.
ragged = st.lists(st.one_of(st.integers(1, 80), st.integers(1, 600)), min_size=1, max_size=5)
windows = st.one_of(st.none(), st.integers(1, 300))
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=30, deadline=None)


@few
@given(layout=st.sampled_from(LAYOUTS), lens=ragged, window=windows, seed=seeds)
def test_decode_is_its_definition(
    device: Gpu, layout: tuple[int, int, int, int], lens: list[int], window: int | None, seed: int
) -> None:
    case = make_case(sizes_of(layout, window), lens, [1] * len(lens), seed)
    assert_close(decode(device, case), case.expected(), case.error())


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_right_through_the_split_path(
    device: Gpu, layout: tuple[int, int, int, int], batch_invariant: bool
) -> None:
    case = make_case(sizes_of(layout, None, batch_invariant), [1024, 1, 17, 520], [1] * 4, seed=len(layout))
    assert_close(decode(device, case), case.expected(), case.error())


@pytest.mark.parametrize("peak", [0.0, 1e-3, 30.0, 300.0])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_flat_and_very_peaked_softmaxes_hold(device: Gpu, peak: float, batch_invariant: bool) -> None:
    case = make_case(sizes_of(LAYOUTS[0], None, batch_invariant), [513, 70], [1, 1], seed=1, peak=peak)
    assert_close(decode(device, case), case.expected(), case.error())


def test_huge_and_tiny_values_are_not_lost(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [300, 300], [1, 1], seed=2)
    scales = 10.0 ** np.linspace(-30, 30, case.value_cache.shape[-1])
    case = replace(case, value_cache=bf16(f64(case.value_cache) * scales))
    assert_close(decode(device, case), case.expected(), case.error())


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_sequence_without_context_gives_zeros(device: Gpu, batch_invariant: bool) -> None:
    case = make_case(sizes_of(LAYOUTS[0], None, batch_invariant), [0, 300, 0], [1] * 3, seed=3)
    got = f64(decode(device, case))
    assert (got[[0, 2]] == 0).all()
    assert_close(bf16(got[1:2]), case.only([1]).expected(), case.only([1]).error())


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("num_sequences", [1, 8])
def test_rows_of_padding_alone_give_zeros(
    device: Gpu, num_sequences: int, batch_invariant: bool, window: int | None
) -> None:
    """As graphs of decode steps are recorded; nothing of the cache, and no entry of the tables, is looked at."""
    sizes = sizes_of(LAYOUTS[0], window, batch_invariant)
    case = padding_of(sizes, num_sequences, num_sequences)
    kernel, out, arrays = make_decode(device, sizes=sizes), poisoned(device, case.query.shape), case.put(device)
    for is_plan_older in (False, True):
        device.memory.fill(out, 0xFF)
        kernel(out, *arrays, is_plan_older=is_plan_older)
        assert (f64(get(device, out)) == 0).all()
    some = make_case(sizes, [300] * num_sequences, [1] * num_sequences, seed=3)
    assert_close(decode(device, some, kernel), some.expected(), some.error())  # it leaves its counters as they were


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("num_sequences", [1, 8])
def test_without_any_sequence_of_one_token_nothing_is_written(
    device: Gpu, num_sequences: int, batch_invariant: bool
) -> None:
    """As the decode part of a step that is padding alone."""
    case = padding_of(sizes_of(LAYOUTS[0], None, batch_invariant), num_sequences, 16)
    kernel, out = make_decode(device, sizes=case.sizes), poisoned(device, case.query.shape)
    for is_plan_older in (False, True):
        kernel(out, *case.put(device), cu_seqlens_q=put(device, case.cu_seqlens_q), is_plan_older=is_plan_older)
        assert np.isnan(f64(get(device, out))).all()


@few
@given(layout=st.sampled_from(LAYOUTS[:3]), lens=ragged, seed=seeds)
def test_permuting_blocks_changes_nothing(
    device: Gpu, layout: tuple[int, int, int, int], lens: list[int], seed: int
) -> None:
    case = make_case(sizes_of(layout), lens, [1] * len(lens), seed)
    assert (bits(decode(device, case)) == bits(decode(device, permuted(case, seed)))).all()


def test_the_order_of_threads_and_blocks_changes_nothing(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [1024, 40, 900], [1] * 3, seed=4)
    first = bits(decode(device, case))
    for _ in range(4):
        assert (bits(decode(device, case)) == first).all()


@few
@given(layout=st.sampled_from(LAYOUTS[:3]), lens=ragged, window=windows, seed=seeds)
def test_batch_invariant_company_changes_nothing(
    device: Gpu, layout: tuple[int, int, int, int], lens: list[int], window: int | None, seed: int
) -> None:
    case = make_case(sizes_of(layout, window, batch_invariant=True), lens, [1] * len(lens), seed)
    together = bits(decode(device, case))
    for b in range(len(lens)):
        assert (bits(decode(device, case.only([b])))[0] == together[b]).all()


def test_a_replayed_graph_follows_the_context_lengths(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [1000, 700, 300], [1] * 3, seed=5)
    kernel = make_decode(device, sizes=case.sizes)
    query, key, value, tables, lens = case.put(device)
    out = poisoned(device, case.query.shape)
    with device.capture() as graph:
        kernel(out, query, key, value, tables, lens)
    for new_lens in ([1000, 700, 300], [1, 650, 2], [900, 1, 0], [128, 129, 130]):
        case = replace(case, context_lens=np.array(new_lens, np.int32))
        device.memory.upload(lens, case.context_lens)
        device.memory.fill(out, 0xFF)
        graph.replay()
        got = get(device, out)
        some = case.only([b for b in range(3) if new_lens[b]])
        assert_close(got[np.array(new_lens) > 0], some.expected(), some.error())
        assert (bits(got) == bits(decode(device, case))).all()


def test_queries_of_a_dependent_launch_are_read_after_the_wait(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [300, 20], [1, 1], seed=6)
    kernel = make_decode(device, sizes=case.sizes)
    query, *rest = case.put(device)
    middle, out = poisoned(device, case.query.shape), poisoned(device, case.query.shape)
    kernel(middle, query, *rest)
    kernel(out, middle, *rest, is_plan_older=True)
    second = replace(case, query=get(device, middle))
    assert_close(get(device, out), second.expected(), second.error())


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_plan_that_the_predecessor_writes_is_read_after_the_wait(device: Gpu, batch_invariant: bool) -> None:
    case = make_case(sizes_of(LAYOUTS[0], None, batch_invariant), [300, 129], [1, 1], seed=9)
    kernel = make_decode(device, sizes=case.sizes)
    query, key, value, tables, lens = case.put(device)
    out, later = (poisoned(device, case.query.shape) for _ in range(2))
    advance = device.compile(ADVANCE).function("advance")
    device.memory.upload(lens, case.context_lens - np.int32(1))
    device.launch(advance, (1, 1, 1), (32, 1, 1), (lens, np.int32(2)))
    kernel(out, query, key, value, tables, lens)
    kernel(later, query, key, value, tables, lens, is_plan_older=True)  # the next layer's: it does not wait for them
    for each in (out, later):
        assert_close(get(device, each), case.expected(), case.error())


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_only_sequences_with_one_token_are_computed_in_a_mixed_step(device: Gpu, batch_invariant: bool) -> None:
    case = make_case(sizes_of(LAYOUTS[0], None, batch_invariant), [40, 300, 9, 77], [5, 1, 0, 1], seed=7)
    out = poisoned(device, case.query.shape)
    kernel = make_decode(device, sizes=case.sizes)
    kernel(out, *case.put(device), cu_seqlens_q=put(device, case.cu_seqlens_q))
    got = get(device, out)
    singles = case.only([1, 3])
    assert_close(got[5:], singles.expected(), singles.error())
    assert np.isnan(f64(got[:5])).all()


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_more_sequences_than_threads_are_planned(device: Gpu, batch_invariant: bool) -> None:
    sizes = replace(sizes_of(LAYOUTS[1], None, batch_invariant), max_batch=200)
    lens = [1 + b * 7 % 90 if b != 150 else 700 for b in range(200)]
    case = make_case(sizes, lens, [1] * 200, seed=10)
    assert_close(decode(device, case), case.expected(), case.error())


def test_wrong_shapes_are_refused(device: Gpu) -> None:
    case = make_case(sizes_of(LAYOUTS[0]), [40, 30], [1, 1], seed=8)
    kernel = make_decode(device, sizes=case.sizes)
    query, key, value, tables, lens = case.put(device)
    out = poisoned(device, case.query.shape)
    with pytest.raises(ShapeError, match=r"value_cache has shape"):
        kernel(out, query, key, value.view((1, *value.shape[1:])), tables, lens)
    with pytest.raises(ShapeError, match=r"1 query rows for 2 sequences"):
        kernel(out.view((1, 8, 64)), query.view((1, 8, 64)), key, value, tables, lens)
    with pytest.raises(ShapeError, match=r"block_tables has shape"):
        kernel(out, query, key, value, tables.view((1, 64)), lens)
    with pytest.raises(ShapeError, match=r"head_dim must be one of 16, 32"):
        sizes_of((8, 2, 48, 16))
    with pytest.raises(ShapeError, match=r"num_heads / num_kv_heads must be one of"):
        sizes_of((18, 2, 64, 16))
    with pytest.raises(ShapeError, match=r"sliding_window must be at least 1"):
        AttentionDecode(device, sizes=sizes_of(LAYOUTS[0], 0))


def test_the_bytes_of_a_call_count_only_what_is_visible() -> None:
    assert decode_bytes(sizes_of((8, 2, 64, 16)), [100, 1]) == 4 * 101 * 2 * 64 + 2 * 2 * 2 * 8 * 64
    assert decode_bytes(sizes_of((8, 2, 64, 16), 30), [100]) == 4 * 30 * 2 * 64 + 2 * 2 * 8 * 64
    assert MAX_CONTEXT % 64 == 0
