"""Every variant that the launchers would compile goes through NVRTC for every architecture, and none spills.

The variants are not listed here: the launchers are made on a device that writes down what they ask for. The table of
registers and shared memory: ``python -m tests.kernels.test_projection_compiles``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

import tinyvllm.kernels
from tinyvllm.devices.interface import Buffer, Device, DeviceProperties
from tinyvllm.devices.nvrtc import ARCHITECTURES, KernelUsage, compile_cubin
from tinyvllm.errors import DeviceError, ShapeError
from tinyvllm.kernels.embedding import Embedding
from tinyvllm.kernels.gate_up_silu import GateUpSilu
from tinyvllm.kernels.linear import LinearRows
from tinyvllm.kernels.linear_residual import LinearResidual
from tinyvllm.kernels.lm_head import LmHeadArgmax
from tinyvllm.kernels.qkv_rope_append import QkvRopeAppend
from tinyvllm.kernels.rms_norm import RmsNorm
from tinyvllm.kernels.rope_append import RopeAppend
from tinyvllm.kernels.silu_mul import SiluMul
from tinyvllm.kernels.tiling import BATCH_ROWS

from .decode_chain import LLAMA_1B, ChainShape

KERNELS = Path(tinyvllm.kernels.__file__).parent
Variant = tuple[str, tuple[tuple[str, str | int], ...]]

QWEN_HALF_B = ChainShape(24, 896, 14, 2, 64, 4864, 151936)
LLAMA_8B = ChainShape(32, 4096, 32, 8, 128, 14336, 128256)
DEMO = ChainShape(3, 192, 4, 2, 64, 512, 4096)


class Recorder:
    """A device that compiles nothing and remembers what it was asked to."""

    properties = DeviceProperties("recorder", 90, 132, 1024, 2048, 32, 227 * 1024, 228 * 1024, 2**37)

    def __init__(self) -> None:
        self.variants: dict[Variant, None] = {}
        self.memory = self

    def compile(self, source: Path, defines: Mapping[str, str | int] | None = None) -> Recorder:
        self.variants[source.name, tuple(sorted((defines or {}).items()))] = None
        return self

    def function(self, name: str, **_: int) -> str:
        return name

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        return Buffer(0, shape, dtype, None)

    def fill(self, buffer: Buffer, byte: int) -> None:
        """Nothing to fill."""


def variants_of(shape: ChainShape, rows: int) -> list[Variant]:
    """What the launchers of a model compile for so many rows; those that do not fit the card left out."""
    recorder = Recorder()
    device = cast(Device, recorder)
    e, f, h, k, d = (
        shape.hidden_size, shape.intermediate_size, shape.num_heads, shape.num_kv_heads, shape.head_dim,
    )  # fmt: skip
    if rows == 1:
        Embedding(device, hidden_size=e)
        RmsNorm(device, hidden_size=e, eps=1e-5)
        SiluMul(device, intermediate_size=f)
        RopeAppend(device, num_heads=h, num_kv_heads=k, head_dim=d)
    LinearRows(device, in_features=e, out_features=(h + 2 * k) * d, max_rows=rows)
    LinearResidual(device, in_features=h * d, out_features=e, max_rows=rows)
    LinearResidual(device, in_features=f, out_features=e, max_rows=rows)
    try:
        QkvRopeAppend(device, hidden_size=e, num_heads=h, num_kv_heads=k, head_dim=d, eps=1e-5, max_rows=rows)
        GateUpSilu(device, hidden_size=e, intermediate_size=f, eps=1e-5, max_rows=rows)
        LmHeadArgmax(device, hidden_size=e, vocab_size=shape.vocab_size, eps=1e-5, max_rows=rows)
    except ShapeError:
        pass
    return list(recorder.variants)


HOT = [variant for rows in (1, 8) for variant in variants_of(LLAMA_1B, rows)]
ALL = list(dict.fromkeys(
    variant for shape in (LLAMA_1B, LLAMA_8B, QWEN_HALF_B, DEMO) for rows in BATCH_ROWS
    for variant in variants_of(shape, rows)
))  # fmt: skip


def usage(variant: Variant, arch: str) -> tuple[KernelUsage, ...]:
    source, defines = variant
    return compile_cubin(KERNELS / source, arch, dict(defines)).usage


def assert_no_spills(variant: Variant, arch: str) -> None:
    try:
        kernels = usage(variant, arch)
    except DeviceError as error:
        pytest.skip(str(error))
    for kernel in kernels:
        assert kernel.spill_bytes == 0, kernel


@pytest.mark.parametrize("variant", HOT, ids=lambda variant: variant[0])
def test_hot_kernels_do_not_spill(variant: Variant) -> None:
    assert_no_spills(variant, "90a")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("variant", ALL, ids=lambda variant: variant[0])
def test_every_variant_compiles_for_every_architecture_without_spills(variant: Variant, arch: str) -> None:
    assert_no_spills(variant, arch)


def main() -> None:
    """Prints the table."""
    print("| kernel | rows x K | " + " | ".join(f"sm_{arch}" for arch in ARCHITECTURES) + " |")
    print("|---" * (2 + len(ARCHITECTURES)) + "|")
    for rows in BATCH_ROWS:
        for variant in variants_of(LLAMA_1B, rows):
            used = [usage(variant, arch) for arch in ARCHITECTURES]
            size = dict(variant[1]).get("SIZE_K", "")
            for kernels in zip(*used, strict=True):
                cells = (f"{kernel.registers}, {kernel.static_shared_bytes} B" for kernel in kernels)
                print(f"| {kernels[0].name} | {rows} x {size} | " + " | ".join(cells) + " |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
