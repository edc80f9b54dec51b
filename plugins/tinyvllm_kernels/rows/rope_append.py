"""Launches ``rope_append.cu``: head norms, rotation, and the append to the paged cache."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16, FLOAT32, INT32
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import VECTOR, beside, ceil_div, check_buffer, check_multiple
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import AttentionProjection, BatchTensors, BindContext, Buffer, Gpu, LayerCache

_THREADS = 128


class RopeAppend:
    """Queries rotated to a buffer of their own, keys (rotated) and values to their slots of the cache.

    Args:
        device: where it runs.
        num_heads: ``H``.
        num_kv_heads: ``K``.
        head_dim: ``D``, a multiple of 16 up to 128.
        eps: of the heads' norms, where there are any.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float = 0.0,
        pdl: bool = True,
    ) -> None:
        check_multiple("head_dim", head_dim, 2 * VECTOR)
        if head_dim > 128:
            raise ShapeError(f"head_dim is {head_dim}, rope_append goes up to 128")
        self._device, self._pdl = device, pdl
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, head_dim
        self._eps = np.float32(eps)
        lanes = 1 << (head_dim // (2 * VECTOR) - 1).bit_length()
        self._blocks = ceil_div((num_heads + 2 * num_kv_heads) * lanes, _THREADS)
        defines = {"HEAD_DIM": head_dim, "LANES": lanes, "THREADS": _THREADS}
        self._function = device.compile(beside(__file__, "rope_append.cu"), defines).function("rope_append")

    def __call__(
        self,
        query: Buffer,
        key_cache: Buffer,
        value_cache: Buffer,
        qkv: Buffer,
        cos: Buffer,
        sin: Buffer,
        positions: Buffer,
        slot_mapping: Buffer,
        *,
        query_norm: Buffer | None = None,
        key_norm: Buffer | None = None,
    ) -> None:
        """Queue it.

        Args:
            query: ``[T, H, D]``, bfloat16.
            key_cache, value_cache: ``[num_blocks, K, block_size, D]``, bfloat16.
            qkv: ``[T, (H + 2K) D]``, bfloat16; queries, keys, values.
            cos, sin: ``[P, D/2]``, float32.
            positions, slot_mapping: ``[T]``, int32; a negative slot stores neither key nor value.
            query_norm, key_norm: ``[D]``, bfloat16; both or neither.
        Raises:
            ShapeError: a buffer has another shape or dtype, or one norm is missing.
        """
        num_tokens, h, k, d = query.shape[0], self._num_heads, self._num_kv_heads, self._head_dim
        check_buffer("rope_append query", query, (None, h, d), BFLOAT16)
        check_buffer("rope_append qkv", qkv, (num_tokens, (h + 2 * k) * d), BFLOAT16)
        if (query_norm is None) != (key_norm is None):
            raise ShapeError("rope_append: query_norm and key_norm go together, got one of them")
        for what, norm in (("query_norm", query_norm), ("key_norm", key_norm)):
            if norm is not None:
                check_buffer(f"rope_append {what}", norm, (d,), BFLOAT16)
        check_cache_and_angles(
            "rope_append", key_cache, value_cache, cos, sin, positions, slot_mapping, (num_tokens, k, d)
        )
        self._device.launch(
            self._function,
            (self._blocks, num_tokens, 1),
            (_THREADS, 1, 1),
            (
                query, key_cache, value_cache, qkv, query_norm, key_norm, cos, sin, positions, slot_mapping,
                np.int32(h), np.int32(k), np.int32(key_cache.shape[2]), self._eps,
            ),
            pdl=self._pdl,
        )  # fmt: skip


def check_cache_and_angles(
    what: str,
    key_cache: Buffer,
    value_cache: Buffer,
    cos: Buffer,
    sin: Buffer,
    positions: Buffer,
    slot_mapping: Buffer,
    sizes: tuple[int, int, int],
) -> None:
    """Checks what every kernel that appends to the cache is given; ``sizes`` are ``T, K, D``."""
    num_tokens, k, d = sizes
    check_buffer(f"{what} key_cache", key_cache, (None, k, None, d), BFLOAT16)
    check_buffer(f"{what} value_cache", value_cache, key_cache.shape, BFLOAT16)
    check_buffer(f"{what} cos", cos, (None, d // 2), FLOAT32)
    check_buffer(f"{what} sin", sin, cos.shape, FLOAT32)
    check_buffer(f"{what} positions", positions, (num_tokens,), INT32)
    check_buffer(f"{what} slot_mapping", slot_mapping, (num_tokens,), INT32)


def bind_rope_append(context: BindContext) -> BoundOp:
    """``rope_append``."""
    device = context.gpu
    made = cache(lambda h, k, d, eps: RopeAppend(device, num_heads=h, num_kv_heads=k, head_dim=d, eps=eps))

    def rope_append(
        query: Buffer, cache: LayerCache, qkv: Buffer, projection: AttentionProjection, batch: BatchTensors
    ) -> None:
        p, q_norm, k_norm = projection, projection.q_norm, projection.k_norm
        launch = made(p.num_heads, p.num_kv_heads, p.head_dim, 0.0 if q_norm is None else q_norm.eps)
        launch(
            query, cache.key, cache.value, qkv, p.rotary.cos, p.rotary.sin, batch.positions, batch.slot_mapping,
            query_norm=None if q_norm is None else q_norm.weight, key_norm=None if k_norm is None else k_norm.weight,
        )  # fmt: skip

    return rope_append


BINDERS = {"rope_append": bind_rope_append}
