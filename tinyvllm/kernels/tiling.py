"""How a projection is cut up: which core, how many warps and rows, how many loads in flight. Knows nothing of buffers.

The defaults are for one H200-like card and the shapes of small models; ``tests/kernels/bench_decode_chain.py`` tries
others. They depend on the sizes of the layer and on ``batch_rows``, never on the number of rows of a call, so that a
row's bits do not either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinyvllm.errors import ShapeError
from tinyvllm.kernels.launch import VECTOR, WARP_SIZE, ceil_div

BATCH_ROWS = (1, 8, 16, 32)
"""Rows of x that a block can work on: one on the arithmetic units, the others on the tensor cores."""

_GEMM_TILE_ROWS = 16
_MOST_STEPS = 8  # 16-byte loads of one row that a lane has in flight
_GROUP = 32  # elements of K in one step of a warp of the tensor core kernels


@dataclass(frozen=True, slots=True)
class Tiling:
    """The choices that a projection is compiled with.

    Attributes:
        batch_rows: rows of x a block works on; one of ``BATCH_ROWS``.
        threads: in a block.
        min_blocks: blocks of an SM that the registers must allow.
        loads: 16-byte loads of weights in flight in each lane.
        warps_per_row: warps that share a weight row; ``batch_rows`` 1 only.
        rows_per_warp: weight rows that a warp works on at once; ``batch_rows`` 1 only.
        split: blocks that share a row; ``batch_rows`` above 1 only.
        blocks_per_sm: blocks that are started for each SM, each doing several tiles; None: one block a tile.
    """

    batch_rows: int
    threads: int = 256
    min_blocks: int = 2
    loads: int = 8
    warps_per_row: int = 1
    rows_per_warp: int = 1
    split: int = 1
    blocks_per_sm: int | None = None

    @property
    def tile_rows(self) -> int:
        """Weight rows of a tile."""
        if self.batch_rows > 1:
            return _GEMM_TILE_ROWS
        return self.threads // WARP_SIZE // self.warps_per_row * self.rows_per_warp

    def defines(self, size_k: int, num_outputs: int) -> dict[str, str | int]:
        """The macros of ``projection.cuh`` for rows of ``size_k`` and so many weight rows."""
        defines: dict[str, str | int] = {
            "SIZE_K": size_k,
            "BATCH_ROWS": self.batch_rows,
            "THREADS": self.threads,
            "MIN_BLOCKS": self.min_blocks,
            "LOADS": self.loads,
            "GUARD_ROWS": int(num_outputs % self.tile_rows != 0),
        }
        if self.batch_rows == 1:
            return {**defines, "WARPS_PER_ROW": self.warps_per_row, "ROWS_PER_WARP": self.rows_per_warp}
        return {**defines, "SPLIT": self.split}

    def staged_bytes(self, size_k: int) -> int:
        """Dynamic shared memory of a kernel with a norm: x times the norm's weight."""
        if self.batch_rows == 1:
            return 0
        num_steps = ceil_div(ceil_div(size_k, _GROUP), self.threads // WARP_SIZE)
        return num_steps * self.batch_rows // 8 * self.threads * 16


def choose_tiling(
    size_k: int,
    batch_rows: int,
    *,
    has_norm: bool = False,
    max_tile_pairs: int = 32,
    blocks_per_sm: int | None = None,
) -> Tiling:
    """The default cut for rows of ``size_k``.

    Args:
        size_k: length of a row of x, a multiple of 8.
        batch_rows: one of ``BATCH_ROWS``.
        has_norm: x is normalised, and so held in float32; it changes no result.
        max_tile_pairs: pairs of weight rows that the epilogue can take in a tile; a power of two, at least 4.
        blocks_per_sm: as in ``Tiling``.

    Raises:
        ShapeError: ``size_k`` or ``batch_rows`` is none that the kernels serve.
    """
    if size_k < 1 or size_k % VECTOR:
        raise ShapeError(f"a projection needs rows of a multiple of {VECTOR} elements, got {size_k}")
    if batch_rows not in BATCH_ROWS:
        raise ShapeError(f"batch_rows is {batch_rows}, expected one of {', '.join(map(str, BATCH_ROWS))}")
    if batch_rows > 1:
        # 64 KiB of weights on their way to an SM, and registers left for a block of the successor: two blocks of
        # eight loads where there are many tiles, one of sixteen where x goes straight to registers.
        is_deep = batch_rows == 8 and not has_norm
        min_blocks, loads = (1, 16) if is_deep else (1 if batch_rows == 32 else 2, 8)
        return Tiling(batch_rows, min_blocks=min_blocks, loads=loads, blocks_per_sm=blocks_per_sm)
    # The split that leaves the fewest lanes idle, of those whose rows are in flight at once; the widest of equals.
    widths = [warps for warps in (8, 4, 2, 1) if _num_steps(size_k, warps) <= _MOST_STEPS] or [8]
    warps_per_row = max(widths, key=lambda warps: size_k / (_num_steps(size_k, warps) * warps))
    num_steps = _num_steps(size_k, warps_per_row)
    rows_per_warp = 1 << (_MOST_STEPS // num_steps).bit_length() - 1 if num_steps <= _MOST_STEPS else 1
    # 80 registers hold eight loads and x, unless x is long and in float32, or ends of rows must be guarded.
    is_whole = size_k // VECTOR == num_steps * warps_per_row * WARP_SIZE
    min_blocks = 3 if is_whole and (num_steps == 1 or not has_norm) else 2
    tiling = Tiling(
        1, min_blocks=min_blocks, warps_per_row=warps_per_row, rows_per_warp=rows_per_warp, blocks_per_sm=blocks_per_sm
    )
    if tiling.tile_rows < 2:
        tiling = replace(tiling, rows_per_warp=2)
    while tiling.tile_rows > 2 * max_tile_pairs and tiling.rows_per_warp > 1:
        tiling = replace(tiling, rows_per_warp=tiling.rows_per_warp // 2)
    return tiling


def rows_tier(max_rows: int) -> int:
    """The smallest of ``BATCH_ROWS`` that holds ``max_rows``, or the largest."""
    return next((rows for rows in BATCH_ROWS if rows >= max_rows), BATCH_ROWS[-1])


def largest_power_of_two(size: int) -> int:
    """The largest power of two that divides ``size``."""
    return size & -size


def _num_steps(size_k: int, warps: int) -> int:
    """Vectors of a row for each lane, when so many warps share it."""
    return ceil_div(size_k // VECTOR, warps * WARP_SIZE)
