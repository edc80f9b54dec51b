"""Times the library's matrix products for a model's layers, once for a card: the choices are remembered on disk."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

import numpy as np

from tinyvllm._terminal import announce
from tinyvllm.device import BFLOAT16, FLOAT32, Buffer, Gpu
from tinyvllm.models.model import Weights
from tinyvllm.workspace import StepLimits

_ROWS = (16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
"""Numbers of rows that are timed; others take the choice of the nearest."""
_SIGMA = 0.02  # products of zeros are faster than any real ones


@runtime_checkable
class TunableProducts(Protocol):
    """A device whose matrix products come in several versions."""

    def is_gemm_tuned(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> bool:
        """Whether the fastest version is known."""
        ...

    def tune_gemm(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> object:
        """Finds it; ``out`` is overwritten."""
        ...


def tune_products(device: Gpu, weights: Weights, limits: StepLimits) -> str:
    """Time what was never timed on this card: some tenths of a second for each layer and number of rows.

    Returns:
        a line for the start-up report.
    """
    if not isinstance(device, TunableProducts):
        return "matrix products: the device's own, in one version"
    began, num_timed = time.perf_counter(), 0
    of_model = [product for layer in weights.layers for block in layer for product in block.products]
    of_each_size = {(layer.in_features, layer.out_features, adds): (layer, adds) for layer, adds in of_model}
    layers: list[tuple[Buffer, bool, int]] = [
        *((layer.weight, adds, limits.max_tokens) for layer, adds in of_each_size.values()),
        (weights.head.weight, False, limits.max_logits_rows),
    ]
    for weight, accumulate, max_rows in layers:
        num_out, num_in = weight.shape
        out_dtype = FLOAT32 if weight is weights.head.weight else BFLOAT16
        wanted = [rows for rows in _ROWS if rows <= max_rows]
        if not wanted:
            continue
        out_rows = device.memory.alloc((wanted[-1], num_out), out_dtype)
        x_rows = device.memory.alloc((wanted[-1], num_in), BFLOAT16)
        products = [(out_rows[:rows], x_rows[:rows]) for rows in wanted]
        unknown = [each for each in products if not device.is_gemm_tuned(*each, weight, accumulate=accumulate)]
        if unknown:
            if num_timed == 0:
                announce("timing matrix products, once for this card: some tens of seconds (autotune: false skips it)")
            x = np.random.default_rng(0).standard_normal(x_rows.shape, np.float32) * _SIGMA
            device.memory.upload(x_rows, x.astype(BFLOAT16))
        for out, x_of_rows in unknown:
            device.tune_gemm(out, x_of_rows, weight, accumulate=accumulate)
        num_timed += len(unknown)
    if num_timed:
        return f"matrix products: {num_timed} timed in {time.perf_counter() - began:.1f} s, and remembered"
    return "matrix products: as timed at an earlier start"
