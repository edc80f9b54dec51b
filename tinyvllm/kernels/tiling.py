"""How a projection is cut up: which core, how many warps and rows, how many loads in flight. Knows nothing of buffers.

The defaults are for one H200-like card and the shapes of small models; ``tests/kernels/bench_decode_chain.py`` tries
others. They depend on the sizes of the layer and on ``batch_rows``, never on the number of rows of a call, so that a
row's bits do not either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinyvllm.devices.interface import DeviceProperties
from tinyvllm.errors import ShapeError
from tinyvllm.kernels.launch import VECTOR, WARP_SIZE, ceil_div, round_up

BATCH_ROWS = (1, 8, 16, 32)
"""Rows of x that a block can work on: one on the arithmetic units, the others on the tensor cores."""

_MMA_ROWS = 16  # weight rows of a tile of the tensor core kernels, in which outputs pair up
_RESERVED_SHARED_BYTES = 1024  # that the system takes for each block
_FLAG_BYTES = 16
_FEWEST_BLOCKS = 120  # that keep the 132 SMs of an H200 busy
_LONG_K = 4096
_SPLIT_ROWS = 64
_STAGE_ELEMENTS = 8192
_MOST_STEPS = 8  # 16-byte loads of one row that a lane has in flight


@dataclass(frozen=True, slots=True)
class Tiling:
    """The choices that a projection is compiled with.

    Attributes:
        batch_rows: rows of x a block works on; one of ``BATCH_ROWS``.
        threads: in a block.
        min_blocks: blocks of an SM that registers and shared memory must allow; the successor's first are among them.
        loads: 16-byte loads of weights in flight in each lane; ``batch_rows`` 1 only.
        warps_per_row: warps that share a weight row.
        rows_per_warp: weight rows that a warp works on at once; a multiple of 16 on the tensor cores.
        split: blocks that share a row; ``batch_rows`` above 1 only, as the next two.
        stage_k: elements of a row that a stage of the ring in shared memory holds; a multiple of 64.
        max_stages: of the ring.
        blocks_per_sm: blocks that are started for each SM, each doing several tiles; None: one block a tile.
    """

    batch_rows: int
    threads: int = 256
    min_blocks: int = 2
    loads: int = 8
    warps_per_row: int = 1
    rows_per_warp: int = 1
    split: int = 1
    stage_k: int = 64
    max_stages: int = 8
    blocks_per_sm: int | None = None

    def __post_init__(self) -> None:
        if self.batch_rows == 1:
            return
        num_warps = self.threads // WARP_SIZE
        if self.rows_per_warp % _MMA_ROWS or self.batch_rows // 8 > num_warps or num_warps % self.warps_per_row:
            raise ShapeError(f"{self}: {_MMA_ROWS} rows a warp, a warp for each 8 of batch_rows, are the least")

    @property
    def tile_rows(self) -> int:
        """Weight rows of a tile."""
        return _MMA_ROWS if self.batch_rows > 1 else self.block_rows

    @property
    def block_rows(self) -> int:
        """Weight rows that a block works on at once; on the tensor cores several tiles."""
        return self.threads // WARP_SIZE // self.warps_per_row * self.rows_per_warp

    def defines(self, size_k: int, num_outputs: int) -> dict[str, str | int]:
        """The macros of ``projection.cuh`` for rows of ``size_k`` and so many weight rows; but for the ring's."""
        defines: dict[str, str | int] = {
            "SIZE_K": size_k,
            "BATCH_ROWS": self.batch_rows,
            "THREADS": self.threads,
            "MIN_BLOCKS": self.min_blocks,
            "GUARD_ROWS": int(num_outputs % self.tile_rows != 0),
            "WARPS_PER_ROW": self.warps_per_row,
            "ROWS_PER_WARP": self.rows_per_warp,
        }
        if self.batch_rows == 1:
            return {**defines, "LOADS": self.loads}
        return {**defines, "SPLIT": self.split, "STAGE_K": self.stage_k}

    def ring(self, properties: DeviceProperties, *, is_one_job: bool) -> Ring:
        """The shared memory of a kernel on the tensor cores: as many stages as leave room for the successor's block.

        Raises:
            ShapeError: two stages do not fit.
        """
        stage_bytes = 2 * self.stage_k * (self.block_rows + self.batch_rows)
        sums_bytes = 4 * self.warps_per_row * self.block_rows * self.batch_rows
        room = properties.shared_bytes_per_sm // self.min_blocks - _RESERVED_SHARED_BYTES - _FLAG_BYTES
        num_stages = max(2, min(self.max_stages, (room if is_one_job else room - sums_bytes) // stage_bytes))
        used = num_stages * stage_bytes
        ring = Ring(num_stages, _FLAG_BYTES + (max(used, sums_bytes) if is_one_job else used + sums_bytes))
        if ring.shared_bytes > properties.max_shared_bytes:
            raise ShapeError(
                f"{self} takes {ring.shared_bytes} bytes of shared memory, a block of {properties.name} has at most "
                f"{properties.max_shared_bytes}"
            )
        return ring


@dataclass(frozen=True, slots=True)
class Ring:
    """How many stages a kernel on the tensor cores has, and its shared memory with all that is in it."""

    num_stages: int
    shared_bytes: int


def choose_tiling(
    size_k: int,
    batch_rows: int,
    *,
    num_outputs: int = 0,
    has_norm: bool = False,
    max_tile_pairs: int = 32,
    blocks_per_sm: int | None = None,
    may_split: bool = True,
) -> Tiling:
    """The default cut for rows of ``size_k``.

    Args:
        size_k: length of a row of x, a multiple of 8.
        batch_rows: one of ``BATCH_ROWS``.
        num_outputs: weight rows; it changes no result where ``batch_rows`` is 1.
        has_norm: x is normalised by the kernel, and so held in float32: only where ``batch_rows`` is 1.
        max_tile_pairs: pairs of weight rows that the epilogue can take in a tile of one row of x; a power of two, at
            least 4.
        blocks_per_sm: as in ``Tiling``.
        may_split: blocks may share rows.

    Raises:
        ShapeError: ``size_k`` or ``batch_rows`` is none that the kernels serve.
    """
    if size_k < 1 or size_k % VECTOR:
        raise ShapeError(f"a projection needs rows of a multiple of {VECTOR} elements, got {size_k}")
    if batch_rows not in BATCH_ROWS:
        raise ShapeError(f"batch_rows is {batch_rows}, expected one of {', '.join(map(str, BATCH_ROWS))}")
    if batch_rows > 1:
        return _tensor_core_tiling(size_k, batch_rows, num_outputs, blocks_per_sm, may_split=may_split)
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


def _tensor_core_tiling(
    size_k: int, batch_rows: int, num_outputs: int, blocks_per_sm: int | None, *, may_split: bool
) -> Tiling:
    """As many weight rows a block as leave one for each SM: every block reads all of x.

    Timed with ``python -m tests.kernels.bench_decode_chain --rows 8 --variants`` and likewise 16 and 32, on an H200.
    """
    block_rows = next((rows for rows in (128, 64, 32) if ceil_div(num_outputs, rows) >= _FEWEST_BLOCKS), _MMA_ROWS)
    if may_split and block_rows < _SPLIT_ROWS and size_k >= _LONG_K:  # more rows a block, and less of K: less of x
        return Tiling(
            batch_rows, min_blocks=1, warps_per_row=4, rows_per_warp=32, split=_SPLIT_ROWS // block_rows,
            stage_k=_STAGE_ELEMENTS // _SPLIT_ROWS, blocks_per_sm=blocks_per_sm,
        )  # fmt: skip
    warps_per_row = 8 * _MMA_ROWS // block_rows
    return Tiling(
        batch_rows,
        # A deep ring pays where the stream is long, room for the successor's first blocks where it is short.
        min_blocks=1 if block_rows == 128 else 2,
        warps_per_row=warps_per_row,
        rows_per_warp=_MMA_ROWS,
        # 16 KiB of weights, or the whole of a short row.
        stage_k=min(_STAGE_ELEMENTS // block_rows, round_up(size_k, max(64, 16 * warps_per_row))),
        blocks_per_sm=blocks_per_sm,
    )


def rows_tier(max_rows: int) -> int:
    """The smallest of ``BATCH_ROWS`` that holds ``max_rows``, or the largest."""
    return next((rows for rows in BATCH_ROWS if rows >= max_rows), BATCH_ROWS[-1])


def largest_power_of_two(size: int) -> int:
    """The largest power of two that divides ``size``."""
    return size & -size


def _num_steps(size_k: int, warps: int) -> int:
    """Vectors of a row for each lane, when so many warps share it."""
    return ceil_div(size_k // VECTOR, warps * WARP_SIZE)
