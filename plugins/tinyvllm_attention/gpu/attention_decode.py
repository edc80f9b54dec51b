"""Launches ``attention_decode.cu``: attention of one query token a sequence over the paged cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinyvllm.device import FLOAT32, DeviceProperties
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import WARP_SIZE, beside, round_up
from tinyvllm.plugin import Buffer, Gpu
from tinyvllm_attention.gpu.attention_sizes import KEY_TILE, AttentionSizes

_MAX_WARPS_PER_SM = 16
"""Four blocks as a rule; of the batch-invariant ones, of one warp, as many as fit: five for head size 64 on Hopper."""
_RESERVED_SHARED_BYTES = 1024
"""That the system takes for each block."""
_STAGE_BUDGET_BYTES = 60 * 1024
"""Three blocks of a Hopper SM, one of an Ada SM, have room for this much in flight."""


class AttentionDecode:
    """Decode attention, split over the whole card whatever the contexts; the grid is fixed, so it can be captured.

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
        defines = decode_defines(sizes)
        shared_bytes = int(defines["SHARED_BYTES"])
        module = device.compile(kernel_source or beside(__file__, "attention_decode.cu"), defines)
        self._function = module.function("attention_decode", max_dynamic_shared_bytes=shared_bytes)
        self._shared_bytes, self._threads = shared_bytes, WARP_SIZE * int(defines["NUM_WARPS"])
        self._grid = device.properties.num_sms * _blocks_per_sm(device.properties, shared_bytes, self._threads)
        self._num_sms = device.properties.num_sms
        num_items = sizes.max_batch * sizes.num_kv_heads
        num_parts = num_items * sizes.max_splits if sizes.batch_invariant else 2 * self._grid
        self._workspace = device.memory.alloc((num_parts, sizes.group_size, sizes.head_dim + 2), FLOAT32)
        self._counters = device.memory.alloc((num_items,), np.uint32)
        device.memory.fill(self._counters, 0)

    @property
    def workspace_bytes(self) -> int:
        """Gpu memory that this object holds."""
        return self._workspace.nbytes + self._counters.nbytes

    def __call__(
        self,
        out: Buffer,
        query: Buffer,
        key_cache: Buffer,
        value_cache: Buffer,
        block_tables: Buffer,
        context_lens: Buffer,
        *,
        cu_seqlens_q: Buffer | None = None,
        is_plan_older: bool = False,
    ) -> None:
        """Queue it. Two calls of one object must not run at the same time: they share the workspace.

        Args:
            out: ``[T, H, D]``, bfloat16. A context of length 0 gives zeros.
            query: ``[T, H, D]``, bfloat16; already rotated.
            key_cache, value_cache: ``[num_blocks, K, block_size, D]``, bfloat16; the tokens of this step are in it.
            block_tables: ``[B, M]``, int32; what is not needed for visible positions is not read.
            context_lens: ``[B]``, int32; this step's token included.
            cu_seqlens_q: ``[B+1]``, int32. None: sequence ``b`` is row ``b``. Otherwise only sequences with exactly
                one token are computed, row ``cu_seqlens_q[b]`` each: the decode part of a mixed step.
            is_plan_older: ``context_lens``, ``cu_seqlens_q`` and ``block_tables`` were complete before the
                predecessor in the stream could start, so they may be read before it ends: true for all layers but a
                graph's first.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        sizes, caches = self._sizes, (key_cache, value_cache)
        sizes.check("attention_decode", out, query, caches, block_tables, context_lens, cu_seqlens_q)
        num_sequences = context_lens.shape[0]
        if query.shape[0] < num_sequences:
            raise ShapeError(f"attention_decode: {query.shape[0]} query rows for {num_sequences} sequences")
        self._device.launch(
            self._function,
            (self._num_blocks(num_sequences), 1, 1),
            (self._threads, 1, 1),
            (
                out, query, key_cache, value_cache, block_tables, context_lens, cu_seqlens_q, self._workspace,
                self._counters, np.int32(num_sequences), np.int32(sizes.num_kv_heads),
                np.int32(block_tables.shape[1]), np.int32(sizes.sliding_window or 0), np.float32(sizes.scale_log2),
                np.int32(is_plan_older),
            ),
            shared_bytes=self._shared_bytes,
            pdl=self._pdl,
        )  # fmt: skip

    def _num_blocks(self, num_sequences: int) -> int:
        """One block an SM where items are few: more and smaller parts take longer to merge than they save."""
        num_items = num_sequences * self._sizes.num_kv_heads
        return self._num_sms if 4 * num_items <= self._num_sms else self._grid


def decode_defines(sizes: AttentionSizes) -> dict[str, str | int]:
    """The macros of ``attention_decode.cu``.

    As a rule four warps take 16 of a tile's 64 positions each, and a block any number of tiles. Batch-invariant, a
    block is one warp that takes 64 positions at a time, as a warp of the prefill kernel does, from cut to cut.
    """
    num_warps, warp_keys = (1, KEY_TILE) if sizes.batch_invariant else (4, KEY_TILE // 4)
    stage_bytes = num_warps * 2 * warp_keys * (sizes.head_dim + 8) * BF16_BYTES
    num_stages = max(2, min(4, _STAGE_BUDGET_BYTES // stage_bytes)) if not sizes.batch_invariant else 2
    part_bytes = sizes.group_size * (sizes.head_dim + 2) * 4
    shared_bytes = num_stages * stage_bytes + num_warps * part_bytes + 3 * 4 * sizes.max_batch + 4 * num_warps + 1
    return {
        **sizes.defines(),
        "NUM_WARPS": num_warps,
        "WARP_KEYS": warp_keys,
        "NUM_STAGES": num_stages,
        "SPLIT_TILES": sizes.split_tiles if sizes.batch_invariant else 0,
        "MIN_TILES": 1 if sizes.batch_invariant else num_stages,
        "MAX_BATCH": sizes.max_batch,
        "SHARED_BYTES": round_up(shared_bytes, 8),
    }


def decode_bytes(sizes: AttentionSizes, context_lens: list[int]) -> int:
    """Bytes that a call moves at least: keys and values of visible positions, queries in and rows out."""
    visible = sum(min(length, sizes.sliding_window or length) for length in context_lens)
    rows = 2 * len(context_lens) * sizes.num_heads
    return (2 * visible * sizes.num_kv_heads + rows) * sizes.head_dim * BF16_BYTES


BF16_BYTES = 2


def _blocks_per_sm(properties: DeviceProperties, shared_bytes: int, threads: int) -> int:
    fitting = (
        properties.shared_bytes_per_sm // (shared_bytes + _RESERVED_SHARED_BYTES),
        properties.max_threads_per_sm // threads,
        properties.max_blocks_per_sm,
        _MAX_WARPS_PER_SM * WARP_SIZE // threads,
    )
    return max(1, min(fitting))
