"""host_ring: what a step gave is on the host one step late, whatever was queued meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.devices.interface import Array, Buffer, Device
from tinyvllm.errors import KernelError, ShapeError
from tinyvllm.kernels.add import Add
from tinyvllm.kernels.host_ring import HostCopy, HostRing

from .support import bf16, f64, once, poisoned, put

make_add = once(Add)


def words(array: Array) -> Array:
    return array.view(np.uint32)


@settings(max_examples=10, deadline=None)
@given(num_words=st.integers(1, 1500), num_steps=st.integers(1, 11), seed=st.integers(0, 2**32 - 1))
def test_each_step_s_copy_comes_to_the_host_one_step_late(
    device: Device, num_words: int, num_steps: int, seed: int
) -> None:
    results = np.random.default_rng(seed).integers(0, 2**32, (num_steps, num_words), np.uint32)
    source = poisoned(device, (num_words,), np.uint32)
    ring, late = HostRing(device, source), None
    for step, result in enumerate(results):
        device.memory.upload(source, result)
        ring.queue()
        now = ring.last()
        if late is not None:
            assert (words(late.wait()) == results[step - 1]).all()
            assert (words(late.wait()) == results[step - 1]).all()
        late = now
    assert late is not None
    assert (words(late.wait()) == results[-1]).all()


def test_a_replayed_graph_copies_each_time(device: Device) -> None:
    """The copy depends on the kernel before it: on the emulator it starts before that has ended."""
    residual = put(device, bf16(np.zeros((1, 64))))
    one = put(device, bf16(np.ones((1, 64))))
    add, ring = make_add(device, hidden_size=64), HostRing(device, residual)

    def step() -> None:
        add(residual, one)
        ring.queue()

    step()
    copies = [ring.last()]
    with device.capture() as graph:
        step()
    for _ in range(3):
        graph.replay()
        copies.append(ring.last())
    for i, copy in enumerate(copies):
        assert (f64(copy.wait().view(bf16(0).dtype)) == i + 1).all()


def queued(ring: HostRing, source: Buffer, device: Device, value: int) -> HostCopy:
    device.memory.upload(source, np.full(source.shape, value, np.uint32))
    ring.queue()
    return ring.last()


def test_a_copy_that_is_overwritten_or_was_never_made_is_an_error_and_no_result(device: Device) -> None:
    source = poisoned(device, (3,), np.uint32)
    ring = HostRing(device, source)
    first, *rest = [queued(ring, source, device, i) for i in range(5)]
    with pytest.raises(KernelError, match="the copy of step 4 is where step 0's should be"):
        first.wait()
    assert [int(words(copy.wait())[0]) for copy in rest] == [1, 2, 3, 4]
    with pytest.raises(KernelError, match="the copy of step 1 is where step 5's should be"):
        ring.last().wait()


def test_a_buffer_that_is_not_whole_words_is_refused(device: Device) -> None:
    with pytest.raises(ShapeError, match="words of 4 bytes, the buffer has 6 bytes"):
        HostRing(device, poisoned(device, (6,), np.uint8))
