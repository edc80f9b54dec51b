"""Launches ``qkv_rope_append.cu``: everything of a layer before attention in one, for few rows."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16
from tinyvllm.ops import fused
from tinyvllm.ops.buffers import VECTOR, check_buffer, check_multiple
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import AttentionProjection, BatchTensors, BindContext, Buffer, Gpu, LayerCache, Norm
from tinyvllm_kernels.projection.projection import Projection
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling, rows_tier
from tinyvllm_kernels.rows.rope_append import check_cache_and_angles
from tinyvllm_kernels.tiers import Tiers


class QkvRopeAppend:
    """Norm, projection, rotation and append for up to ``max_rows`` rows; heads have no norms of their own.

    Args:
        device: where it runs.
        hidden_size: ``E``, a multiple of 8.
        num_heads, num_kv_heads: ``H``, ``K``.
        head_dim: ``D``, a multiple of 16.
        eps: of the norm.
        max_rows: maximum number of rows of a call. One row goes to the arithmetic units, more to the tensor cores.
        tiling: how it is cut up; chosen if not given.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        max_rows: int = 1,
        tiling: Tiling | None = None,
        pdl: bool = True,
    ) -> None:
        check_multiple("head_dim", head_dim, 2 * VECTOR)
        num_outputs = (num_heads + 2 * num_kv_heads) * head_dim
        tiling = tiling or choose_tiling(hidden_size, rows_tier(max_rows), num_outputs=num_outputs, has_norm=True)
        check_multiple("half of head_dim", head_dim // 2, tiling.tile_rows // 2)
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, head_dim
        self._eps = np.float32(eps)
        self._projection = Projection(
            device, "qkv_rope_append", size_k=hidden_size, num_outputs=num_outputs,
            tiling=tiling, max_rows=max_rows, pdl=pdl, eps=eps, defines={"HEAD_DIM": head_dim},
        )  # fmt: skip

    def __call__(
        self,
        query: Buffer,
        key_cache: Buffer,
        value_cache: Buffer,
        x: Buffer,
        norm: Buffer,
        weight: Buffer,
        bias: Buffer | None,
        cos: Buffer,
        sin: Buffer,
        positions: Buffer,
        slot_mapping: Buffer,
    ) -> None:
        """Queue it.

        Args:
            query: ``[T, H, D]``, bfloat16.
            key_cache, value_cache: ``[num_blocks, K, block_size, D]``, bfloat16.
            x: ``[T, E]``, bfloat16.
            norm: ``[E]``, bfloat16.
            weight: ``[(H + 2K) D, E]``, bfloat16; queries, keys, values.
            bias: ``[(H + 2K) D]``, bfloat16, or None.
            cos, sin: ``[P, D/2]``, float32.
            positions, slot_mapping: ``[T]``, int32; a negative slot stores neither key nor value.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        p, h, k, d = self._projection, self._num_heads, self._num_kv_heads, self._head_dim
        num_rows = p.check_rows(x)
        check_buffer("qkv_rope_append query", query, (num_rows, h, d), BFLOAT16)
        check_buffer("qkv_rope_append norm", norm, (p.size_k,), BFLOAT16)
        check_buffer("qkv_rope_append weight", weight, (p.num_outputs, p.size_k), BFLOAT16)
        if bias is not None:
            check_buffer("qkv_rope_append bias", bias, (p.num_outputs,), BFLOAT16)
        sizes = (num_rows, k, d)
        check_cache_and_angles("qkv_rope_append", key_cache, value_cache, cos, sin, positions, slot_mapping, sizes)
        numbers = (num_rows, h, k, key_cache.shape[2], p.num_tiles)
        p.launch(
            num_rows,
            (
                query, key_cache, value_cache, p.workspace, p.counters, p.normalised(x, norm), norm, weight, bias, cos,
                sin, positions, slot_mapping, *map(np.int32, numbers), self._eps,
            ),
        )  # fmt: skip


def bind_qkv(context: BindContext) -> BoundOp:
    """``rms_norm_qkv_rope_append``."""
    device, tiers = context.gpu, Tiers(context)
    composed = fused.compose_qkv(context) if tiers.has_products else None
    linear, heads = context.linear, context.spec.heads
    assert heads is not None, "the op splits its rows into heads"

    @cache
    def made(eps: float, max_rows: int) -> QkvRopeAppend:
        return QkvRopeAppend(
            device, hidden_size=linear.in_features, num_heads=heads.num_heads, num_kv_heads=heads.num_kv_heads,
            head_dim=heads.head_dim, eps=eps, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, linear.in_features, linear.out_features),
        )  # fmt: skip

    def rms_norm_qkv_rope_append(
        query: Buffer, cache: LayerCache, x: Buffer, norm: Norm, projection: AttentionProjection, batch: BatchTensors
    ) -> None:
        rows = tiers.rows(x.shape[0])
        if rows is None:
            assert composed is not None
            composed(query, cache, x, norm, projection, batch)
            return
        qkv, rotary = projection.qkv, projection.rotary
        made(norm.eps, rows)(
            query, cache.key, cache.value, x, norm.weight, qkv.weight, qkv.bias, rotary.cos, rotary.sin,
            batch.positions, batch.slot_mapping,
        )  # fmt: skip

    return rms_norm_qkv_rope_append


BINDERS = {"rms_norm_qkv_rope_append": bind_qkv}
