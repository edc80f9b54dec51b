"""How the rows of a call are cut into tiles, one a block, for kernels whose results do not depend on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyvllm.device import INT32, Gpu
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import ceil_div, check_buffer, round_up
from tinyvllm.slots import SampledBuffers

BLOCKS_PER_SM = 4
"""Of 256 threads with 64 registers each: what an SM holds. Twice as many were slower for 32, 128 and 256 rows."""
_MAX_TILES = 64
"""Of a row: beyond it a block has less to do than to begin and to end."""


@dataclass(frozen=True, slots=True)
class RowTiles:
    """Tiles of rows of ``vocab_size`` tokens: as few as fill the device, since each block has a price.

    Attributes:
        vocab_size: ``V``.
        threads: of a block. loads: groups of four tokens that a thread has under way.
        num_blocks: wanted in a call.
    """

    vocab_size: int
    threads: int
    loads: int
    num_blocks: int

    @classmethod
    def of(cls, device: Gpu, vocab_size: int, threads: int, loads: int, num_blocks: int | None) -> RowTiles:
        """``num_blocks`` None: what the device holds at once."""
        wanted = BLOCKS_PER_SM * device.properties.num_sms if num_blocks is None else num_blocks
        return cls(vocab_size, threads, loads, wanted)

    @property
    def most(self) -> int:
        """Tiles of a row, at most."""
        return self.cut(1)[0]

    @property
    def defines(self) -> dict[str, str | int]:
        """Macros of ``sample_tile.cuh``."""
        return {"THREADS": self.threads, "LOADS": self.loads}

    def cut(self, num_rows: int) -> tuple[int, int]:
        """The number of tiles of each of so many rows, and the tokens of a tile."""
        num_tiles = min(max(self.num_blocks // num_rows, 1), _MAX_TILES)
        tile_size = round_up(ceil_div(self.vocab_size, num_tiles), 4 * self.threads)
        return ceil_div(self.vocab_size, tile_size), tile_size


def check_rows(op: str, num_rows: int, max_rows: int) -> None:
    """Return if there is workspace for ``num_rows``.

    Raises:
        ShapeError: there is not, or there is no row.
    """
    if not 1 <= num_rows <= max_rows:
        raise ShapeError(f"{op} has {num_rows} rows, the launcher was made for 1 to {max_rows}")


def check_sampled(op: str, out: SampledBuffers, num_rows: int) -> None:
    """Return if the buffers are those of a step of ``num_rows``; raises ShapeError."""
    check_buffer(f"{op} token_ids", out.token_ids, (num_rows,), INT32)
    check_buffer(f"{op} is_corrupt", out.is_corrupt, (num_rows,), np.dtype(np.uint8))
