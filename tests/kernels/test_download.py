"""download against a copy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.devices.cuda.small_download import SmallDownload
from tinyvllm.devices.interface import Device
from tinyvllm.errors import KernelError

from .support import get, once, poisoned, put

make_download = once(SmallDownload)


@settings(max_examples=20, deadline=None)
@given(num_bytes=st.integers(1, 3000), start=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_any_bytes_from_any_address_arrive_and_nothing_else_is_written(
    device: Device, num_bytes: int, start: int, seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, start + num_bytes, np.uint8)
    target = poisoned(device, (num_bytes + 8,), np.uint8)
    before = get(device, target).copy()
    source = put(device, array).view((num_bytes,), offset_bytes=start)
    make_download(device)(target.view((num_bytes,)), source)
    assert (get(device, target) == np.concatenate([array[start:], before[num_bytes:]])).all()


def test_it_waits_for_what_it_copies(device: Device) -> None:
    """A chain: on the emulator a launch that depends on another starts before that has ended."""
    download, array = make_download(device), np.arange(999, dtype=np.int32)
    first, *rest = put(device, array), *(poisoned(device, (999,), np.int32) for _ in range(3))
    for target in rest:
        download(target, first)
        first = target
    assert (get(device, first) == array).all()


def test_another_size_or_a_crooked_target_is_refused(device: Device) -> None:
    source, target = (poisoned(device, (16,), np.uint8) for _ in range(2))
    with pytest.raises(KernelError, match="download: 16 bytes to 15 at address"):
        make_download(device)(target.view((15,)), source)
    with pytest.raises(KernelError, match="expected as many at a multiple of 4"):
        make_download(device)(target.view((12,), offset_bytes=2), source.view((12,)))
