"""step_inputs against its definition."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.devices.interface import Device
from tinyvllm.kernels.step_inputs import HEADER_SIZE, StepArrays, StepInputs
from tinyvllm.reference.step_inputs import StepState, step_inputs

from .support import get, once, put

make_step_inputs = once(StepInputs)
UNTOLD = -7
"""What is beyond the updates must not be looked at."""


def _packed(updates: np.ndarray, num_places: int, *, is_next: bool) -> np.ndarray:
    packed = np.full(HEADER_SIZE + 3 * num_places, UNTOLD, np.int32)
    packed[:HEADER_SIZE] = is_next, len(updates)
    packed[HEADER_SIZE : HEADER_SIZE + updates.size] = updates.reshape(-1)
    return packed


def _updates(rng: np.random.Generator, tables: np.ndarray) -> np.ndarray:
    places = rng.permutation(tables.size)[: rng.integers(0, tables.size)].astype(np.int32)
    blocks = rng.integers(0, 99, len(places), dtype=np.int32)
    return np.stack([places // tables.shape[1], places % tables.shape[1], blocks], axis=1)


def _on_device(device: Device, state: StepState, packed: np.ndarray) -> StepArrays:
    return StepArrays(*(put(device, array) for array in (*astuple(state), packed)))


def _read(device: Device, arrays: StepArrays) -> StepState:
    return StepState(*(get(device, getattr(arrays, name)) for name in StepState.__dataclass_fields__))


def _assert_equal(got: StepState, expected: StepState) -> None:
    for name in StepState.__dataclass_fields__:
        assert np.array_equal(getattr(got, name), getattr(expected, name)), name


@settings(max_examples=20, deadline=None)
@given(num_tokens=st.integers(1, 600), num_sampled=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_tokens_come_from_the_last_step_and_tables_are_updated(
    device: Device, num_tokens: int, num_sampled: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sampled = rng.integers(-1, 1000, num_sampled, dtype=np.int32)
    tables = rng.integers(0, 99, (7, 13), dtype=np.int32)
    state = StepState(
        token_ids=rng.integers(-num_sampled, 1000, num_tokens, dtype=np.int32),
        positions=rng.integers(0, 1000, num_tokens, dtype=np.int32),
        slot_mapping=rng.integers(0, 1000, num_tokens, dtype=np.int32),
        context_lens=rng.integers(0, 1000, 7, dtype=np.int32),
        new_positions=rng.integers(0, 1000, 7, dtype=np.int32),
        block_tables=tables,
    )
    updates = _updates(rng, tables)
    arrays = _on_device(device, state, _packed(updates, tables.size, is_next=False))
    make_step_inputs(device, block_size=16)(arrays, put(device, sampled), is_decode=False)
    _assert_equal(_read(device, arrays), step_inputs(state, sampled, updates, is_next=False, block_size=16))


@settings(max_examples=20, deadline=None)
@given(
    num_rows=st.integers(1, 600),
    num_padding=st.integers(0, 20),
    block_size=st.sampled_from([1, 8, 16]),
    num_steps=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_decode_step_goes_on_by_itself(
    device: Device, num_rows: int, num_padding: int, block_size: int, num_steps: int, seed: int
) -> None:
    """The host sends one step whole; of those after it nothing, or what is new in the tables."""
    rng = np.random.default_rng(seed)
    size, width = num_rows + num_padding, 9
    padding = np.zeros(num_padding, np.int32)
    positions = rng.integers(0, (width - num_steps) * block_size - num_steps, num_rows, dtype=np.int32)
    tables = rng.integers(0, 99, (size, width), dtype=np.int32)
    slots = tables[np.arange(num_rows), positions // block_size] * block_size + positions % block_size
    state = StepState(
        np.concatenate([rng.integers(-size, 1000, num_rows, dtype=np.int32), padding]),
        np.concatenate([positions, padding]),
        np.concatenate([slots.astype(np.int32), padding - 1]),
        np.concatenate([positions + 1, padding]),
        np.concatenate([positions + 1, padding]),
        tables,
    )
    kernel = make_step_inputs(device, block_size=block_size)
    updates = _updates(rng, tables)
    arrays = _on_device(device, state, _packed(updates, tables.size, is_next=False))
    for step in range(1 + num_steps):
        sampled = rng.integers(-1, 1000, size, dtype=np.int32)
        kernel(arrays, put(device, sampled), is_decode=True)
        state = step_inputs(state, sampled, updates, is_next=step > 0, block_size=block_size)
        _assert_equal(_read(device, arrays), state)
        assert get(device, arrays.updates)[:HEADER_SIZE].tolist() == [1, 0]
        updates = np.zeros((0, 3), np.int32)
        if rng.integers(0, 2):
            updates = _updates(rng, tables)
            device.memory.upload(arrays.updates, _packed(updates, tables.size, is_next=True))
