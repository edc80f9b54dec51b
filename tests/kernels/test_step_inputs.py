"""step_inputs against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Gpu
from tinyvllm.reference.step_inputs import step_inputs
from tinyvllm.runner.step_inputs import HEADER_SIZE, StepArrays, StepInputs

from .support import get, once, put

make_step_inputs = once(StepInputs)
UNTOLD = -7
"""What is beyond the updates must not be looked at."""


def _packed(updates: np.ndarray, num_places: int) -> np.ndarray:
    packed = np.full(HEADER_SIZE + 3 * num_places, UNTOLD, np.int32)
    packed[0] = len(updates)
    packed[HEADER_SIZE : HEADER_SIZE + updates.size] = updates.reshape(-1)
    return packed


def _updates(rng: np.random.Generator, tables: np.ndarray) -> np.ndarray:
    places = rng.permutation(tables.size)[: rng.integers(0, tables.size)].astype(np.int32)
    blocks = rng.integers(0, 99, len(places), dtype=np.int32)
    return np.stack([places // tables.shape[1], places % tables.shape[1], blocks], axis=1)


@settings(max_examples=40, deadline=None)
@given(
    num_tokens=st.integers(1, 600),
    num_slots=st.integers(1, 40),
    num_rows=st.integers(1, 120),
    is_decode=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_unseen_tokens_come_from_their_slots_and_tables_are_updated(
    device: Gpu, num_tokens: int, num_slots: int, num_rows: int, is_decode: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    newest = rng.integers(0, 1000, num_slots, dtype=np.int32)
    tables = rng.integers(0, 99, (num_rows, 13), dtype=np.int32)
    token_ids = rng.integers(-num_slots, 1000, num_tokens, dtype=np.int32)
    updates = _updates(rng, tables)
    arrays = StepArrays(put(device, token_ids), put(device, tables), put(device, _packed(updates, tables.size)))
    on_device = put(device, newest)
    make_step_inputs(device)(arrays, on_device, is_decode=is_decode)
    expected_ids, expected_tables = step_inputs(token_ids, tables, newest, updates)
    assert np.array_equal(get(device, arrays.token_ids), expected_ids)
    assert np.array_equal(get(device, arrays.block_tables), expected_tables)
    assert np.array_equal(get(device, on_device), newest)
