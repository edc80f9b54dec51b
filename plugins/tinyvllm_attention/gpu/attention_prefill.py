"""Launches ``attention_prefill.cu``: causal attention of prompts, chunks and mixed steps over the paged cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinyvllm.device import BFLOAT16
from tinyvllm.ops.buffers import WARP_SIZE, beside
from tinyvllm.plugin import Buffer, Gpu
from tinyvllm_attention.gpu.attention_sizes import KEY_TILE, AttentionSizes

_NUM_WARPS, _NUM_STAGES = 4, 2
_THREADS = _NUM_WARPS * WARP_SIZE
_MAX_HEAD_DIM_FOR_TWO_ROW_TILES = 64
"""Above it the accumulators of two row tiles a warp do not fit the registers."""


class AttentionPrefill:
    """Attention of any number of tokens a sequence; the grid depends on ``T`` and ``B`` alone.

    Args:
        device: where it runs.
        sizes: what it is compiled for.
        pdl: the launch may overlap the end of its predecessor.
        kernel_source: another source with the same parameters.
    """

    def __init__(
        self, device: Gpu, *, sizes: AttentionSizes, pdl: bool = True, kernel_source: Path | None = None
    ) -> None:
        self._device, self._sizes, self._pdl = device, sizes, pdl
        defines = prefill_defines(sizes)
        self._shared_bytes = int(defines["SHARED_BYTES"])
        self._block_rows = _NUM_WARPS * 16 * int(defines["ROW_TILES"])
        module = device.compile(kernel_source or beside(__file__, "attention_prefill.cu"), defines)
        self._function = module.function("attention_prefill", max_dynamic_shared_bytes=self._shared_bytes)

    def __call__(
        self,
        out: Buffer,
        query: Buffer,
        key_cache: Buffer,
        value_cache: Buffer,
        block_tables: Buffer,
        context_lens: Buffer,
        cu_seqlens_q: Buffer,
        *,
        min_queries: int = 1,
        is_plan_older: bool = False,
    ) -> None:
        """Queue it.

        Args:
            out: ``[T, H, D]``, bfloat16. Rows of no sequence are left alone.
            query: ``[T, H, D]``, bfloat16; already rotated.
            key_cache, value_cache: ``[num_blocks, K, block_size, D]``, bfloat16; the tokens of this step are in it.
            block_tables: ``[B, M]``, int32; what is not needed for visible positions is not read.
            context_lens: ``[B]``, int32; this step's tokens included.
            cu_seqlens_q: ``[B+1]``, int32; a sequence may have no token.
            min_queries: sequences with fewer tokens are left alone; 2 leaves the decoding ones to the decode kernel.
            is_plan_older: ``context_lens``, ``block_tables`` and ``cu_seqlens_q`` were complete before the
                predecessor in the stream could start, so they may be read before it ends.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        sizes, caches = self._sizes, (key_cache, value_cache)
        sizes.check("attention_prefill", out, query, caches, block_tables, context_lens, cu_seqlens_q)
        num_sequences = context_lens.shape[0]
        # A sequence's rows fill all its blocks but the last; see first_block_of.
        num_row_blocks = query.shape[0] * sizes.group_size // self._block_rows + num_sequences
        self._device.launch(
            self._function,
            (sizes.num_kv_heads, num_row_blocks, 1),
            (_THREADS, 1, 1),
            (
                out, query, key_cache, value_cache, block_tables, context_lens, cu_seqlens_q,
                np.int32(num_sequences), np.int32(sizes.num_kv_heads), np.int32(block_tables.shape[1]),
                np.int32(sizes.sliding_window or 0), np.float32(sizes.scale_log2), np.int32(min_queries),
                np.int32(is_plan_older),
            ),
            shared_bytes=self._shared_bytes,
            pdl=self._pdl,
        )  # fmt: skip


def prefill_defines(sizes: AttentionSizes) -> dict[str, str | int]:
    """The macros of ``attention_prefill.cu``."""
    is_narrow = sizes.head_dim <= _MAX_HEAD_DIM_FOR_TWO_ROW_TILES and not sizes.batch_invariant
    row_tiles = 2 if is_narrow else 1
    shared_rows = _NUM_STAGES * 2 * KEY_TILE + _NUM_WARPS * 16 * row_tiles
    return {
        **sizes.defines(),
        "ROW_TILES": row_tiles,
        "SPLIT_TILES": sizes.split_tiles if sizes.batch_invariant else 0,
        "SHARED_BYTES": shared_rows * (sizes.head_dim + 8) * BFLOAT16.itemsize,
    }


def prefill_flops(sizes: AttentionSizes, num_queries: list[int], context_lens: list[int]) -> int:
    """Multiplications and additions that a call needs: two products of ``D`` a head and visible position."""
    visible = sum(
        min(position + 1, sizes.sliding_window or position + 1)
        for count, length in zip(num_queries, context_lens, strict=True)
        for position in range(length - count, length)
    )
    return 4 * visible * sizes.num_heads * sizes.head_dim
