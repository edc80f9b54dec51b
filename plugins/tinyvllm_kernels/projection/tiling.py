"""How a projection is cut up: which core, how many warps and rows, how much in flight. Knows nothing of buffers.

The defaults are for one H200-like card and the shapes of small models; ``tinyvllm/bench/device/decode_chain.py`` tries
others. They depend on the sizes of the layer and on ``batch_rows``, never on the number of rows of a call, so that a
row's bits do not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinyvllm.device import DeviceProperties
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import HOPPER_ARCH, VECTOR, VECTOR_BYTES, WARP_SIZE, ceil_div, round_up

BATCH_ROWS = (1, 8, 16, 32)
"""Rows of x that a block can work on: one on the arithmetic units, the others on the tensor cores."""
LARGE_BATCH_ROWS = (64, 128)
"""The same of the kernels for many rows, which sum in the order of those for 8 to 32 and take the same cut of K."""

SHARING_ROWS = 256
"""Batch-invariant, up to so many rows blocks share a long weight row: there is scratch memory for their sums."""

_MMA_ROWS = 16  # weight rows of a tile of the tensor core kernels, in which outputs pair up
_RESERVED_SHARED_BYTES = 1024  # that the system takes for each block
_FLAG_BYTES = 16
_MIN_BLOCKS = 120  # that keep the 132 SMs of an H200 busy
_LONG_K = 4096
_SPLIT_ROWS = 64
_FEW_OUTPUTS = 8192  # below which blocks of 128 weight rows are fewer than half the SMs of an H200
_CHUNK_K = 64  # that a warp takes at a time, where warps share a row
_STEP = WARP_SIZE * VECTOR  # elements of a row that a warp takes at a time, for one row of x
_NORMED_BYTES, _PLAIN_BYTES = 105 * 1024, 121 * 1024  # a block of each, and what the system takes, fill a Hopper SM


@dataclass(frozen=True, slots=True)
class Tiling:
    """The choices that a projection is compiled with.

    Attributes:
        batch_rows: rows of x a block works on; one of ``BATCH_ROWS`` or ``LARGE_BATCH_ROWS``.
        threads: in a block.
        min_blocks: blocks of an SM that registers and shared memory must allow; the successor's first are among them.
        warps_per_row: warps that share a weight row; ``batch_rows`` above 1 only. In ``LARGE_BATCH_ROWS`` one warp does
            the work of these, one after the other.
        rows_per_warp: weight rows that a warp works on at once: a power of two from 2 where ``batch_rows`` is 1, else a
            multiple of 16.
        split: blocks that share a row; ``batch_rows`` above 1 only, as the next one.
        stage_k: elements of a row that a stage of the ring in shared memory holds; a multiple of 64. In
            ``LARGE_BATCH_ROWS`` 64 are held, but a block's part of a row is still a multiple of this.
        max_stages: of the ring. Where ``batch_rows`` is 1, a stage is 256 elements of a warp's rows.
        blocks_per_sm: blocks that are started for each SM, each doing several tiles; None: one block a tile.
        shares_rows: ``split`` counts blocks; in ``LARGE_BATCH_ROWS`` one block may take these parts of a row in turn.
    """

    batch_rows: int
    threads: int = 256
    min_blocks: int = 2
    warps_per_row: int = 1
    rows_per_warp: int = 2
    split: int = 1
    stage_k: int = 64
    max_stages: int = 8
    blocks_per_sm: int | None = None
    shares_rows: bool = True

    def __post_init__(self) -> None:
        if self.batch_rows == 1:
            return
        if self.is_large:
            if self.stage_k % (_CHUNK_K * self.warps_per_row):
                raise ShapeError(f"{self}: stage_k must be whole chunks of {_CHUNK_K} for each of warps_per_row")
            return
        num_warps = self.threads // WARP_SIZE
        if self.rows_per_warp % _MMA_ROWS or self.batch_rows // 8 > num_warps or num_warps % self.warps_per_row:
            raise ShapeError(f"{self}: {_MMA_ROWS} rows a warp, a warp for each 8 of batch_rows, are the least")

    @property
    def is_large(self) -> bool:
        """For many rows."""
        return self.batch_rows in LARGE_BATCH_ROWS

    @property
    def num_sharing(self) -> int:
        """Blocks that share a row."""
        return self.split if self.shares_rows else 1

    @property
    def tile_rows(self) -> int:
        """Weight rows of a tile."""
        return _MMA_ROWS if self.batch_rows > 1 else self.rows_per_warp

    @property
    def block_rows(self) -> int:
        """Weight rows for which a block is started: a warp's, or on the tensor cores all that it works on at once."""
        if self.batch_rows == 1:
            return self.rows_per_warp
        return self.threads // WARP_SIZE // (1 if self.is_large else self.warps_per_row) * self.rows_per_warp

    def defines(self, size_k: int, num_outputs: int) -> dict[str, str | int]:
        """The macros of ``projection.cuh`` for rows of ``size_k`` and so many weight rows; but for the ring's."""
        defines: dict[str, str | int] = {
            "SIZE_K": size_k,
            "BATCH_ROWS": self.batch_rows,
            "THREADS": self.threads,
            "MIN_BLOCKS": self.min_blocks,
            "GUARD_ROWS": int(num_outputs % self.tile_rows != 0),
            "ROWS_PER_WARP": self.rows_per_warp,
        }
        if self.batch_rows == 1:
            return defines
        defines |= {"WARPS_PER_ROW": self.warps_per_row, "SPLIT": self.split, "STAGE_K": self.stage_k}
        return {**defines, "SPANS_PER_BLOCK": self.split // self.num_sharing} if self.is_large else defines

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
        return self._fitting(ring, properties)

    def chunk_ring(self, properties: DeviceProperties) -> Ring:
        """The shared memory of a kernel for many rows: stages of one chunk, at least three.

        Raises:
            ShapeError: three stages do not fit.
        """
        stage_bytes = 2 * _CHUNK_K * (self.block_rows + self.batch_rows)
        room = properties.shared_bytes_per_sm // self.min_blocks - _RESERVED_SHARED_BYTES - _FLAG_BYTES
        num_stages = max(3, min(self.max_stages, room // stage_bytes))
        return self._fitting(Ring(num_stages, _FLAG_BYTES + num_stages * stage_bytes), properties)

    def _fitting(self, ring: Ring, properties: DeviceProperties) -> Ring:
        if ring.shared_bytes > properties.max_shared_bytes:
            raise ShapeError(
                f"{self} takes {ring.shared_bytes} bytes of shared memory, a block of {properties.name} has at most "
                f"{properties.max_shared_bytes}"
            )
        return ring

    def row_ring(self, size_k: int, max_bytes: int, *, has_norm: bool) -> Ring:
        """The shared memory of a kernel for one row: x, and as many stages as fit with it, at most those of a row.

        Raises:
            ShapeError: one stage does not fit.
        """
        x_bytes = round_up(size_k, _STEP) * (4 if has_norm else 2)
        fixed_bytes = x_bytes + round_up(4 * self.threads // WARP_SIZE, VECTOR_BYTES)
        stage_bytes = self.rows_per_warp * self.threads * VECTOR_BYTES
        num_stages = min(self.max_stages, ceil_div(size_k, _STEP), (max_bytes - fixed_bytes) // stage_bytes)
        if num_stages < 1:
            raise ShapeError(
                f"{self}: x of {size_k} and one stage take {fixed_bytes + stage_bytes} bytes of shared memory, "
                f"there are {max_bytes}"
            )
        return Ring(num_stages, fixed_bytes + num_stages * stage_bytes)


@dataclass(frozen=True, slots=True)
class Ring:
    """How many stages a kernel has, and its shared memory with all that is in it."""

    num_stages: int
    shared_bytes: int


def choose_tiling(
    size_k: int,
    batch_rows: int,
    *,
    num_outputs: int = 0,
    has_norm: bool = False,
    blocks_per_sm: int | None = None,
    may_split: bool = True,
) -> Tiling:
    """The default cut for rows of ``size_k``.

    Args:
        size_k: length of a row of x, a multiple of 8.
        batch_rows: one of ``BATCH_ROWS`` or ``LARGE_BATCH_ROWS``.
        num_outputs: weight rows; it changes no result where ``batch_rows`` is 1.
        has_norm: x is normalised by the kernel, and so held in float32: only where ``batch_rows`` is 1.
        blocks_per_sm: as in ``Tiling``, where ``batch_rows`` is above 1; one row takes one block an SM.
        may_split: blocks may share rows.

    Raises:
        ShapeError: ``size_k`` or ``batch_rows`` is none that the kernels serve.
    """
    if size_k < 1 or size_k % VECTOR:
        raise ShapeError(f"a projection needs rows of a multiple of {VECTOR} elements, got {size_k}")
    possible = (*BATCH_ROWS, *LARGE_BATCH_ROWS)
    if batch_rows not in possible:
        raise ShapeError(f"batch_rows is {batch_rows}, expected one of {', '.join(map(str, possible))}")
    if batch_rows > 1:
        return _tensor_core_tiling(size_k, batch_rows, num_outputs, blocks_per_sm, may_split=may_split)
    # A layer's kernels with and without a norm take turns. One block of either fits on a Hopper SM beside one of the
    # other, which fills its ring meanwhile. Two of one kind do not: they would lie on one SM and leave another without.
    # Those with a norm have many threads, whose registers take more than half, the others much shared memory.
    if has_norm:
        kind, max_bytes = Tiling(1, threads=768, min_blocks=1, rows_per_warp=2, max_stages=64), _NORMED_BYTES
    else:
        rows_per_warp = 4 if size_k <= 8 * _STEP else 2
        kind, max_bytes = Tiling(1, min_blocks=3, rows_per_warp=rows_per_warp, max_stages=64), _PLAIN_BYTES
    max_stages = kind.row_ring(size_k, max_bytes, has_norm=has_norm).num_stages
    return replace(kind, max_stages=max_stages, blocks_per_sm=1)


def _tensor_core_tiling(
    size_k: int, batch_rows: int, num_outputs: int, blocks_per_sm: int | None, *, may_split: bool
) -> Tiling:
    """As many weight rows a block as leave one for each SM: every block reads all of x.

    Timed with ``python -m tinyvllm.bench.device.decode_chain --rows 8 --variants`` and likewise 16 and 32, on an H200.
    """
    if batch_rows in LARGE_BATCH_ROWS:
        cut = _tensor_core_tiling(size_k, BATCH_ROWS[-1], num_outputs, blocks_per_sm, may_split=may_split)
        return replace(cut, batch_rows=batch_rows, min_blocks=1, rows_per_warp=_MMA_ROWS, blocks_per_sm=1)
    block_rows = next((rows for rows in (128, 64, 32) if ceil_div(num_outputs, rows) >= _MIN_BLOCKS), _MMA_ROWS)
    if may_split and block_rows < _SPLIT_ROWS and size_k >= _LONG_K:  # more rows a block, and less of K: less of x
        return Tiling(
            batch_rows, min_blocks=1, warps_per_row=4, rows_per_warp=32, split=_SPLIT_ROWS // block_rows,
            stage_k=4 * _CHUNK_K, blocks_per_sm=blocks_per_sm,
        )  # fmt: skip
    chunks = ceil_div(size_k, _CHUNK_K)
    warps_per_row = min(8 * _MMA_ROWS // block_rows, 1 << (chunks - 1).bit_length())
    return Tiling(
        batch_rows,
        # A deep ring pays where the stream is long, room for the successor's first blocks where it is short.
        min_blocks=1 if block_rows == 128 else 2,
        warps_per_row=warps_per_row,
        rows_per_warp=_MMA_ROWS,
        stage_k=warps_per_row * _CHUNK_K,
        blocks_per_sm=blocks_per_sm,
    )


def invariant_tiling(arch: int, size_k: int, max_rows: int, *, num_outputs: int, may_split: bool = True) -> Tiling:
    """A cut for up to ``max_rows`` rows by which K is cut, and so a row summed, as by that for any other number.

    Args:
        arch: of the card, 90 for sm_90.
        size_k, num_outputs, may_split: as of ``choose_tiling``.
        max_rows: maximum number of rows of a call; one goes to the tensor cores too.
    """
    if max_rows <= BATCH_ROWS[-1]:
        return choose_tiling(size_k, max(8, rows_tier(max_rows)), num_outputs=num_outputs, may_split=may_split)
    is_shared = max_rows <= SHARING_ROWS
    is_small = is_shared and num_outputs < _FEW_OUTPUTS  # a block's copies take the time: more and smaller blocks
    # The sums of 128 rows stay in registers, beside those of their parts, only with Hopper's instructions.
    is_wide = arch == HOPPER_ARCH and not is_small and max_rows > LARGE_BATCH_ROWS[0]
    tiling = choose_tiling(size_k, LARGE_BATCH_ROWS[is_wide], num_outputs=num_outputs, may_split=may_split)
    return replace(tiling, threads=128 if is_small else 256, shares_rows=is_shared)


def rows_tier(max_rows: int) -> int:
    """The smallest of ``BATCH_ROWS`` that holds ``max_rows``, or the largest."""
    return smallest_holding(max_rows, BATCH_ROWS) or BATCH_ROWS[-1]


def smallest_holding(num_rows: int, tiers: Sequence[int]) -> int | None:
    """The first of ``tiers``, which grow, that is not below ``num_rows``; None: all are."""
    return next((rows for rows in tiers if rows >= num_rows), None)
