"""The static sizes of paged attention that both kernels are compiled for, and the checks of what they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinyvllm.device import BFLOAT16, INT32
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import ceil_div, check_buffer
from tinyvllm.plugin import Buffer

HEAD_DIMS = (16, 32, 64, 80, 96, 128)
BLOCK_SIZES = (8, 16, 32, 64)
MAX_GROUP_SIZE = 8

KEY_TILE = 64
"""Absolute positions that a batch-invariant row's softmax takes at a time."""
_MIN_SPLIT_KEYS = 256
_MAX_SPLITS = 32


@dataclass(frozen=True, slots=True)
class AttentionSizes:
    """What attention over one paged cache is compiled for.

    Attributes:
        num_heads: ``H``.
        num_kv_heads: ``K``; ``H / K`` is whole and at most 8.
        head_dim: ``D``, one of 16, 32, 64, 80, 96, 128.
        block_size: positions of a block: 8, 16, 32 or 64.
        max_batch: maximum number of sequences of a step.
        max_context_len: longest sequence.
        scale: of the scores; ``1 / sqrt(D)`` if None.
        sliding_window: positions that a query sees, itself included; None for all.
        batch_invariant: a row's bits depend on its own sequence only, and are the same from both kernels.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    max_batch: int
    max_context_len: int
    scale: float | None = None
    sliding_window: int | None = None
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        """Refuses what the kernels do not cover.

        Raises:
            ShapeError: naming the size, what was got and what is possible.
        """
        for what, got, possible in (
            ("head_dim", self.head_dim, HEAD_DIMS),
            ("block_size", self.block_size, BLOCK_SIZES),
            ("num_heads / num_kv_heads", self.num_heads / max(1, self.num_kv_heads), range(1, MAX_GROUP_SIZE + 1)),
        ):
            if got not in possible:
                raise ShapeError(f"attention: {what} must be one of {', '.join(map(str, possible))}, got {got:g}")
        for what, got in (("max_batch", self.max_batch), ("max_context_len", self.max_context_len)):
            if got < 1:
                raise ShapeError(f"attention: {what} must be at least 1, got {got}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ShapeError(f"attention: sliding_window must be at least 1 or None, got {self.sliding_window}")
        if self.scale is not None and not self.scale > 0:
            raise ShapeError(f"attention: scale must be above 0, got {self.scale}")

    @property
    def group_size(self) -> int:
        """Query heads of one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def scale_log2(self) -> float:
        """The scale of scores whose softmax is taken in powers of two."""
        return (self.scale or 1 / math.sqrt(self.head_dim)) * math.log2(math.e)

    @property
    def split_tiles(self) -> int:
        """Key tiles from one cut of a batch-invariant row to the next: a constant of the engine, not of the batch."""
        split_keys = _MIN_SPLIT_KEYS
        while split_keys * _MAX_SPLITS < self.max_context_len:
            split_keys *= 2
        return split_keys // KEY_TILE

    @property
    def max_splits(self) -> int:
        """Cuts of the longest sequence."""
        return ceil_div(self.max_context_len, self.split_tiles * KEY_TILE)

    def defines(self) -> dict[str, str | int]:
        """The macros of ``attention_tile.cuh``."""
        return {"HEAD_DIM": self.head_dim, "BLOCK_SIZE": self.block_size, "GROUP_SIZE": self.group_size}

    def check(
        self,
        what: str,
        out: Buffer,
        query: Buffer,
        caches: tuple[Buffer, Buffer],
        block_tables: Buffer,
        context_lens: Buffer,
        cu_seqlens_q: Buffer | None,
    ) -> None:
        """Return if the buffers of a call fit these sizes and one another.

        Raises:
            ShapeError: naming the buffer, what was got and what was expected.
        """
        num_sequences = context_lens.shape[0] if context_lens.shape else 0
        check_buffer(f"{what} query", query, (None, self.num_heads, self.head_dim), BFLOAT16)
        check_buffer(f"{what} out", out, query.shape, BFLOAT16)
        cache_shape = (None, self.num_kv_heads, self.block_size, self.head_dim)
        check_buffer(f"{what} key_cache", caches[0], cache_shape, BFLOAT16)
        check_buffer(f"{what} value_cache", caches[1], caches[0].shape, BFLOAT16)
        check_buffer(f"{what} context_lens", context_lens, (None,), INT32)
        check_buffer(f"{what} block_tables", block_tables, (num_sequences, None), INT32)
        if cu_seqlens_q is not None:
            check_buffer(f"{what} cu_seqlens_q", cu_seqlens_q, (num_sequences + 1,), INT32)
        if not 1 <= num_sequences <= self.max_batch:
            raise ShapeError(f"{what}: {num_sequences} sequences, compiled for 1 to {self.max_batch}")
        if self.batch_invariant and block_tables.shape[1] > ceil_div(self.max_context_len, self.block_size):
            raise ShapeError(
                f"{what}: {block_tables.shape[1]} blocks a sequence of {self.block_size} positions, compiled for "
                f"contexts up to {self.max_context_len}"
            )
