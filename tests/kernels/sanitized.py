"""Launches for a sanitizer, which runs them in a process of its own; see ``test_projection_mutants``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.kernels.mutants import device_of
from tests.kernels.support import bf16, poisoned, put
from tinyvllm.device import Gpu
from tinyvllm_kernels.projection.gate_up_silu import GateUpSilu
from tinyvllm_kernels.projection.linear import LinearRows
from tinyvllm_kernels.projection.linear_residual import LinearResidual
from tinyvllm_kernels.projection.lm_head import LmHeadArgmax, LmHeadLogits
from tinyvllm_kernels.projection.tiling import Tiling
from tinyvllm_kernels.rows.embedding import Embedding
from tinyvllm_kernels.rows.gelu_mul import GeluMul
from tinyvllm_kernels.rows.norm_columns import NormColumns
from tinyvllm_kernels.rows.rms_norm import RmsNorm
from tinyvllm_kernels.rows.rope_append import RopeAppend
from tinyvllm_kernels.rows.scale import Scale
from tinyvllm_kernels.rows.silu_mul import SiluMul
from tinyvllm_kernels.wide.gate_up_silu_wide import GateUpSiluWide
from tinyvllm_kernels.wide.linear_residual_wide import LinearResidualWide

EPS = 1e-5


def ones(device: Gpu, *shape: int) -> Any:
    return put(device, bf16(np.ones(shape)))


def run_gemv(device: Gpu, folder: str | None = None) -> None:
    """Ragged rows and a last tile that hangs over, several tiles a block."""
    device = device_of(device, folder)
    tiling = Tiling(1, rows_per_warp=2, threads=128, max_stages=3, blocks_per_sm=1)
    run = LinearResidual(device, in_features=1096, out_features=19, tiling=tiling)
    run(ones(device, 1, 19), ones(device, 1, 1096), ones(device, 19, 1096), ones(device, 19))
    head = LmHeadLogits(device, hidden_size=40, vocab_size=70, eps=EPS)
    head(poisoned(device, (1, 70), np.float32), ones(device, 1, 40), ones(device, 40), ones(device, 70, 40))


def run_gemm(device: Gpu, folder: str | None = None) -> None:
    """Ragged rows, a last tile that hangs over, fewer rows of x than a block can take, several tiles a block."""
    device = device_of(device, folder)
    tiling = Tiling(8, threads=64, warps_per_row=2, rows_per_warp=16, blocks_per_sm=1)
    run = LinearRows(device, in_features=1096, out_features=70, max_rows=8, tiling=tiling)
    run(poisoned(device, (3, 70)), ones(device, 3, 1096), ones(device, 70, 1096))
    gate_up = GateUpSilu(device, hidden_size=200, intermediate_size=64, eps=EPS, max_rows=8, tiling=tiling)
    gate_up(poisoned(device, (3, 64)), ones(device, 3, 200), ones(device, 200), ones(device, 128, 200))


def run_split(device: Gpu, folder: str | None = None) -> None:
    """Blocks that share a tile."""
    device = device_of(device, folder)
    tiling = Tiling(16, threads=64, warps_per_row=2, rows_per_warp=16, split=3)
    run = LinearResidual(device, in_features=1096, out_features=19, max_rows=16, tiling=tiling)
    run(ones(device, 9, 19), ones(device, 9, 1096), ones(device, 19, 1096))


def run_large(device: Gpu, folder: str | None = None) -> None:
    """As ``run_gemm``; and blocks that share an item."""
    device = device_of(device, folder)
    for split in (1, 2):
        tiling = Tiling(64, rows_per_warp=16, max_stages=3, split=split)
        run = LinearResidual(device, in_features=328, out_features=70, max_rows=9, tiling=tiling)
        run(ones(device, 9, 70), ones(device, 9, 328), ones(device, 70, 328))
    tiling = replace(tiling, split=1)
    gate_up = GateUpSilu(device, hidden_size=200, intermediate_size=32, eps=EPS, max_rows=8, tiling=tiling)
    gate_up(poisoned(device, (3, 32)), ones(device, 3, 200), ones(device, 200), ones(device, 64, 200))


def run_wide(device: Gpu, folder: str | None = None) -> None:
    """Rows and outputs that do not fill a block, a ring that turns round."""
    device = device_of(device, folder)
    down = LinearResidualWide(device, in_features=1096, out_features=72, batch_rows=64)
    down(ones(device, 35, 72), ones(device, 35, 1096), ones(device, 72, 1096), ones(device, 72))
    gate_up = GateUpSiluWide(device, hidden_size=72, intermediate_size=72, eps=EPS, batch_rows=64)
    gate_up(poisoned(device, (35, 72)), ones(device, 35, 72), ones(device, 72), ones(device, 144, 72))


def run_wide_split(device: Gpu, folder: str | None = None) -> None:
    """Blocks that share a tile."""
    device = device_of(device, folder)
    run = LinearResidualWide(device, in_features=520, out_features=64, batch_rows=64)
    run(ones(device, 35, 64), ones(device, 35, 520), ones(device, 64, 520))


def run_argmax(device: Gpu, folder: str | None = None) -> None:
    """Blocks that leave their best for the last."""
    device = device_of(device, folder)
    for rows in (1, 3):
        tiling = Tiling(1, threads=64) if rows == 1 else Tiling(8, threads=64, rows_per_warp=16)
        run = LmHeadArgmax(device, hidden_size=40, vocab_size=70, eps=EPS, max_rows=rows, tiling=tiling)
        run(poisoned(device, (rows,), np.int32), ones(device, rows, 40), ones(device, 40), ones(device, 70, 40))


def run_simple(device: Gpu, folder: str | None = None) -> None:
    """Sizes that leave lanes without work."""
    device = device_of(device, folder)
    ids = put(device, np.array([6, 0], np.int32))
    x = poisoned(device, (2, 120))
    Embedding(device, hidden_size=120)(x, ids, ones(device, 7, 120))
    RmsNorm(device, hidden_size=120, eps=EPS)(x, x, ones(device, 120))
    SiluMul(device, intermediate_size=2120)(poisoned(device, (2, 2120)), ones(device, 2, 4240))
    GeluMul(device, intermediate_size=2120)(poisoned(device, (2, 2120)), ones(device, 2, 4240))
    Scale(device, hidden_size=120)(x, 2.0)
    NormColumns(device, width=120, first=16, size=104, eps=EPS)(x, ones(device, 104))
    key_cache, value_cache = (poisoned(device, (2, 1, 8, 80)) for _ in range(2))
    angles = put(device, np.ones((9, 40), np.float32))
    positions, slots = put(device, np.array([8, 0], np.int32)), put(device, np.array([15, -1], np.int32))
    RopeAppend(device, num_heads=3, num_kv_heads=1, head_dim=80, eps=EPS)(
        poisoned(device, (2, 3, 80)), key_cache, value_cache, ones(device, 2, 400), angles, angles, positions, slots,
        query_norm=ones(device, 80), key_norm=ones(device, 80),
    )  # fmt: skip


ALL = {
    "gemv": run_gemv,
    "gemm": run_gemm,
    "split": run_split,
    "large": run_large,
    "wide": run_wide,
    "wide_split": run_wide_split,
    "argmax": run_argmax,
    "simple": run_simple,
}
