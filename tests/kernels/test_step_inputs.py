"""step_inputs against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.devices.interface import Device
from tinyvllm.kernels.step_inputs import StepInputs
from tinyvllm.reference.step_inputs import step_inputs

from .support import get, once, put

make_step_inputs = once(StepInputs)


@settings(max_examples=20, deadline=None)
@given(num_tokens=st.integers(1, 600), num_sampled=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_tokens_come_from_the_last_step_and_tables_are_updated(
    device: Device, num_tokens: int, num_sampled: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sampled = rng.integers(-1, 1000, num_sampled, dtype=np.int32)
    token_ids = rng.integers(-num_sampled, 1000, num_tokens, dtype=np.int32)
    tables = rng.integers(0, 99, (7, 13), dtype=np.int32)
    places = rng.permutation(tables.size)[: rng.integers(0, tables.size)].astype(np.int32)
    updates = np.stack([places // 13, places % 13, rng.integers(0, 99, len(places), dtype=np.int32)], axis=1)
    packed = np.full(1 + 3 * tables.size, -7, np.int32)  # what is beyond the count must not be looked at
    packed[0] = len(updates)
    packed[1 : 1 + updates.size] = updates.reshape(-1)
    on_device = [put(device, array) for array in (token_ids, tables, sampled, packed)]
    make_step_inputs(device)(*on_device)
    expected_ids, expected_tables = step_inputs(token_ids, tables, sampled, updates)
    assert np.array_equal(get(device, on_device[0]), expected_ids)
    assert np.array_equal(get(device, on_device[1]), expected_tables)
    assert np.array_equal(get(device, on_device[2]), sampled)
