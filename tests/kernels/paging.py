"""Positions, angles and a paged cache of which only some slots will be written; the rest is NaN and must stay so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import LayerCache
from tinyvllm.device import Buffer, Gpu
from tinyvllm.layers import RotaryTable
from tinyvllm.reference.kv_append import kv_append
from tinyvllm.reference.rope import rope

from .support import BF16, Float64, assert_close, f64, get, put

NUM_POSITIONS = 300


@dataclass(frozen=True, slots=True)
class Step:
    """Where the ``T`` tokens of a step stand, and the cache of one layer."""

    positions: NDArray[np.int32]
    slot_mapping: NDArray[np.int32]
    table: RotaryTable
    cache: LayerCache
    """As it must be afterwards, in float64; filled by ``expect``."""

    def expect(self, query: Float64, key: Float64, value: Float64) -> Float64:
        """Appends what the definition appends; the rotated queries. ``[T, heads, D]`` each, padding included."""
        kept = self.slot_mapping >= 0
        table = RotaryTable(f64(self.table.cos), f64(self.table.sin))
        rotated = [rope(x, self.positions, table) for x in (query, key)]  # type: ignore[arg-type]
        kv_append(rotated[1][kept], value[kept], self.cache, self.slot_mapping[kept])  # type: ignore[arg-type]
        return rotated[0].astype(np.float64)


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """The same on a device."""

    positions: Buffer
    slot_mapping: Buffer
    cos: Buffer
    sin: Buffer
    key_cache: Buffer
    value_cache: Buffer


def random_step(
    rng: np.random.Generator, num_tokens: int, num_kv_heads: int, head_dim: int, block_size: int, padding: int = 0
) -> Step:
    """Tokens at random positions in slots of permuted blocks; the last ``padding`` of them have no slot."""
    num_blocks = -(-num_tokens // block_size) + 2
    slots = rng.permutation(num_blocks * block_size)[:num_tokens].astype(np.int32)
    slots[num_tokens - padding :] = -1
    angles = np.arange(NUM_POSITIONS)[:, None] * 10000.0 ** (-np.arange(head_dim // 2) / (head_dim // 2))
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    return Step(
        rng.integers(0, NUM_POSITIONS, num_tokens, dtype=np.int32),
        slots,
        RotaryTable(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)),
        LayerCache(np.full(shape, np.nan), np.full(shape, np.nan)),
    )


def put_step(device: Gpu, step: Step) -> StepBuffers:
    """The step on the device, its cache full of NaN."""
    cache = np.full(step.cache.key.shape, np.nan).astype(BF16)
    arrays = (step.positions, step.slot_mapping, step.table.cos, step.table.sin, cache, cache)
    return StepBuffers(*(put(device, array) for array in arrays))


def assert_appended(device: Gpu, buffers: StepBuffers, step: Step, key_error: float, value_error: float) -> None:
    """The cache is as expected: NaN where nothing was stored, within the errors elsewhere."""
    pairs = (
        (buffers.key_cache, step.cache.key, key_error),
        (buffers.value_cache, step.cache.value, value_error),
    )
    for buffer, expected, error in pairs:
        got = get(device, buffer)
        written = ~np.isnan(expected)
        assert (np.isnan(f64(got)) == ~written).all(), "a slot was missed, or one written that is not ours"
        assert_close(got[written], expected[written], error)


def rotation_error(magnitude: float) -> float:
    """What float32 tables and arithmetic add to a rotated value of that size."""
    return 8 * 2.0**-24 * magnitude
