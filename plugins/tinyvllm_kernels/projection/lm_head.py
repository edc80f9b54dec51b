"""Launches ``lm_head.cu``: final norm and logits in one, or only the most likely token, for few rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from tinyvllm.device import BFLOAT16, FLOAT32, INT32
from tinyvllm.errors import ShapeError
from tinyvllm.ops import fused
from tinyvllm.ops.buffers import check_buffer
from tinyvllm.ops.op import BoundOp
from tinyvllm.plugin import BindContext, Buffer, Gpu, Linear, Norm
from tinyvllm_kernels.projection.projection import Projection, zeros
from tinyvllm_kernels.projection.tiling import Tiling, choose_tiling, rows_tier
from tinyvllm_kernels.tiers import FUSED_HEAD_ROWS, Tiers


class LmHeadLogits:
    """``logits = norm(x) @ weight.T`` in float32, for up to ``max_rows`` rows.

    Args:
        device: where it runs.
        hidden_size: ``E``, a multiple of 8.
        vocab_size: ``V``.
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
        vocab_size: int,
        eps: float,
        max_rows: int = 1,
        tiling: Tiling | None = None,
        pdl: bool = True,
    ) -> None:
        self._eps = np.float32(eps)
        self._projection = _lm_head("lm_head_logits", device, hidden_size, vocab_size, eps, max_rows, tiling, pdl)

    def __call__(self, logits: Buffer, x: Buffer, norm: Buffer, weight: Buffer) -> None:
        """Queue it.

        Args:
            logits: ``[T, V]``, float32.
            x: ``[T, E]``, bfloat16.
            norm: ``[E]``, bfloat16.
            weight: ``[V, E]``, bfloat16.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        p = self._projection
        num_rows = _check_inputs(p, x, norm, weight)
        check_buffer("lm_head logits", logits, (num_rows, p.num_outputs), FLOAT32)
        p.launch(num_rows, (logits, p.normalised(x, norm), norm, weight, *_sizes(p, num_rows), self._eps))


class LmHeadArgmax:
    """The token with the largest logit of each row, the lowest of equals; -1 where a logit is NaN.

    The logits themselves are not stored.

    Args:
        device: where it runs.
        hidden_size: ``E``, a multiple of 8.
        vocab_size: ``V``.
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
        vocab_size: int,
        eps: float,
        max_rows: int = 1,
        tiling: Tiling | None = None,
        pdl: bool = True,
    ) -> None:
        self._eps = np.float32(eps)
        p = _lm_head("lm_head_argmax", device, hidden_size, vocab_size, eps, max_rows, tiling, pdl)
        self._projection = p
        self._best_values = device.memory.alloc((max_rows, p.num_blocks), np.float32)
        self._best_indices = device.memory.alloc((max_rows, p.num_blocks), np.int32)
        self._counters = zeros(device, p.num_row_tiles)

    def __call__(self, token_ids: Buffer, x: Buffer, norm: Buffer, weight: Buffer) -> None:
        """Queue it.

        Args:
            token_ids: ``[T]``, int32.
            x: ``[T, E]``, bfloat16.
            norm: ``[E]``, bfloat16.
            weight: ``[V, E]``, bfloat16.
        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        p = self._projection
        num_rows = _check_inputs(p, x, norm, weight)
        check_buffer("lm_head token_ids", token_ids, (num_rows,), INT32)
        scratch = (self._best_values, self._best_indices, self._counters)
        p.launch(num_rows, (token_ids, *scratch, p.normalised(x, norm), norm, weight, *_sizes(p, num_rows), self._eps))


def _lm_head(
    function: str,
    device: Gpu,
    hidden_size: int,
    vocab_size: int,
    eps: float,
    max_rows: int,
    tiling: Tiling | None,
    pdl: bool,
) -> Projection:
    if tiling is None:
        # Some thousand tiles: each block does several, keeps its part of x, and leaves one candidate behind.
        batch_rows = rows_tier(max_rows)
        tiling = choose_tiling(
            hidden_size, batch_rows, num_outputs=vocab_size, has_norm=True, blocks_per_sm=4 if batch_rows == 1 else 1,
            may_split=False,
        )  # fmt: skip
    if tiling.split > 1:
        raise ShapeError(f"lm_head: blocks do not share rows, split is {tiling.split}")
    return Projection(
        device, "lm_head", size_k=hidden_size, num_outputs=vocab_size, tiling=tiling, max_rows=max_rows, pdl=pdl,
        eps=eps, function=function,
    )  # fmt: skip


def _check_inputs(p: Projection, x: Buffer, norm: Buffer, weight: Buffer) -> int:
    num_rows = p.check_rows(x)
    check_buffer("lm_head norm", norm, (p.size_k,), BFLOAT16)
    check_buffer("lm_head weight", weight, (p.num_outputs, p.size_k), BFLOAT16)
    return num_rows


def _sizes(p: Projection, num_rows: int) -> tuple[np.int32, np.int32, np.int32]:
    return np.int32(num_rows), np.int32(p.num_outputs), np.int32(p.num_tiles)


def bind_rms_norm_lm_head(context: BindContext) -> BoundOp:
    """``rms_norm_lm_head``."""
    return _bind_head(LmHeadLogits, context, fused.compose_lm_head)


def bind_lm_head_argmax(context: BindContext) -> BoundOp:
    """``lm_head_argmax``."""
    return _bind_head(LmHeadArgmax, context, fused.compose_lm_head_argmax)


def _bind_head(
    launcher: type[LmHeadLogits] | type[LmHeadArgmax],
    context: BindContext,
    compose: Callable[[BindContext], Callable[..., None]],
) -> BoundOp:
    device, tiers = context.gpu, Tiers(context, FUSED_HEAD_ROWS)
    composed = compose(context) if tiers.has_head_products else None

    @cache
    def made(vocab_size: int, hidden_size: int, eps: float, max_rows: int) -> LmHeadLogits | LmHeadArgmax:
        return launcher(
            device, hidden_size=hidden_size, vocab_size=vocab_size, eps=eps, max_rows=max_rows,
            tiling=tiers.tiling(max_rows, hidden_size, vocab_size, may_split=False),
        )  # fmt: skip

    def head_of_rows(out: Buffer, x: Buffer, norm: Norm, head: Linear) -> None:
        rows = tiers.fused_head_rows(x.shape[0])
        if rows is None:
            assert composed is not None
            composed(out, x, norm, head)
        else:
            made(head.out_features, head.in_features, norm.eps, rows)(out, x, norm.weight, head.weight)

    return head_of_rows


BINDERS = {"rms_norm_lm_head": bind_rms_norm_lm_head, "lm_head_argmax": bind_lm_head_argmax}
