"""host_ring: what a step gave is on the host one step late, whatever was queued meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Array, Buffer, Gpu
from tinyvllm.errors import KernelError, ShapeError
from tinyvllm.runner.host_ring import HostCopy, HostRing
from tinyvllm_kernels.rows.add import Add

from .support import bf16, f64, get, once, poisoned, put

make_add = once(Add)


def ring_of(device: Gpu, source: Buffer) -> HostRing:
    return HostRing(device, source, poisoned(device, (4,), np.int32))


def no_slots(device: Gpu) -> Buffer:
    return put(device, np.full(1, -1, np.int32))


def words(array: Array) -> Array:
    return array.view(np.uint32)


@settings(max_examples=10, deadline=None)
@given(num_words=st.integers(1, 1500), num_steps=st.integers(1, 11), seed=st.integers(0, 2**32 - 1))
def test_each_step_s_copy_comes_to_the_host_one_step_late(
    device: Gpu, num_words: int, num_steps: int, seed: int
) -> None:
    results = np.random.default_rng(seed).integers(0, 2**32, (num_steps, num_words), np.uint32)
    source = poisoned(device, (num_words,), np.uint32)
    ring, slots, late = ring_of(device, source), no_slots(device), None
    for step, result in enumerate(results):
        device.memory.upload(source, result)
        ring.queue(slots)
        now = ring.last()
        if late is not None:
            assert (words(late.wait()) == results[step - 1]).all()
            assert (words(late.wait()) == results[step - 1]).all()
        late = now
    assert late is not None
    assert (words(late.wait()) == results[-1]).all()


def test_a_replayed_graph_copies_each_time(device: Gpu) -> None:
    """The copy depends on the kernel before it: on the emulator it starts before that has ended."""
    residual = put(device, bf16(np.zeros((1, 64))))
    one = put(device, bf16(np.ones((1, 64))))
    add, ring, slots = make_add(device, hidden_size=64), ring_of(device, residual), no_slots(device)

    def step() -> None:
        add(residual, one)
        ring.queue(slots)

    step()
    copies = [ring.last()]
    with device.capture() as graph:
        step()
    for _ in range(3):
        graph.replay()
        copies.append(ring.last())
    for i, copy in enumerate(copies):
        assert (f64(copy.wait().view(bf16(0).dtype)) == i + 1).all()


def queued(ring: HostRing, source: Buffer, device: Gpu, value: int) -> HostCopy:
    device.memory.upload(source, np.full(source.shape, value, np.uint32))
    ring.queue(no_slots(device))
    return ring.last()


def test_a_copy_that_is_overwritten_or_was_never_made_is_an_error_and_no_result(device: Gpu) -> None:
    source = poisoned(device, (3,), np.uint32)
    ring = ring_of(device, source)
    first, *rest = [queued(ring, source, device, i) for i in range(5)]
    with pytest.raises(KernelError, match="the copy of step 4 is where step 0's should be"):
        first.wait()
    assert [int(words(copy.wait())[0]) for copy in rest] == [1, 2, 3, 4]
    with pytest.raises(KernelError, match="the copy of step 1 is where step 5's should be"):
        ring.last().wait()


def test_a_buffer_that_is_not_whole_words_is_refused(device: Gpu) -> None:
    with pytest.raises(ShapeError, match="words of 4 bytes, the buffer has 6 bytes"):
        ring_of(device, poisoned(device, (6,), np.uint8))


def test_tokens_become_the_newest_of_their_slots(device: Gpu) -> None:
    """Rows without a slot, and words behind the rows, change nothing; what could not be chosen counts as token 0."""
    rng = np.random.default_rng(5)
    slots = rng.permutation(600).astype(np.int32)[:500]
    slots[rng.random(500) < 0.3] = -1
    tokens = np.where(rng.random(520) < 0.1, -1, rng.integers(0, 9999, 520)).astype(np.int32)
    newest = put(device, np.full(600, 77, np.int32))
    ring = HostRing(device, put(device, tokens.view(np.uint32)), newest)
    ring.queue(put(device, slots))
    assert (ring.last().wait().view(np.int32) == tokens).all()
    expected = np.full(600, 77, np.int32)
    expected[slots[slots >= 0]] = np.maximum(tokens[:500], 0)[slots >= 0]
    np.testing.assert_array_equal(get(device, newest), expected)
    with pytest.raises(ShapeError, match="600 slots, the buffer 520 words"):
        ring.queue(put(device, np.zeros(600, np.int32)))


def test_after_a_copy_that_nobody_asked_for_the_ring_counts_on(device: Gpu) -> None:
    source = poisoned(device, (3,), np.uint32)
    ring = ring_of(device, source)
    first = queued(ring, source, device, 5)
    ring.queue(no_slots(device))  # whoever queued it was interrupted
    ring.recover()
    second = queued(ring, source, device, 6)
    assert [int(words(copy.wait())[0]) for copy in (first, second)] == [5, 6]
