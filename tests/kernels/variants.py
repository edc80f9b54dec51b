"""What the launchers compile, for which sizes: each source with its macros, and the kernels that are taken from it.

The macros are not listed here: the launchers are made on a device that writes down what they ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np

from tinyvllm.bench.device.chain import LLAMA_1B, ChainShape
from tinyvllm.device import Buffer, DeviceProperties, Gpu, HostBuffer
from tinyvllm.devices.nvrtc import ARCHITECTURES
from tinyvllm.errors import ShapeError
from tinyvllm.runner.host_ring import HostRing
from tinyvllm.runner.step_inputs import StepInputs
from tinyvllm_attention.gpu.attention_decode import AttentionDecode
from tinyvllm_attention.gpu.attention_prefill import AttentionPrefill
from tinyvllm_attention.gpu.attention_sizes import AttentionSizes
from tinyvllm_kernels.hopper import WIDE_RESIDUAL_ROWS, WIDE_ROWS
from tinyvllm_kernels.projection.gate_up_silu import GateUpSilu
from tinyvllm_kernels.projection.linear import LinearRows
from tinyvllm_kernels.projection.linear_residual import LinearResidual
from tinyvllm_kernels.projection.lm_head import LmHeadArgmax, LmHeadLogits
from tinyvllm_kernels.projection.logits import LogitsRows
from tinyvllm_kernels.projection.qkv_rope_append import QkvRopeAppend
from tinyvllm_kernels.projection.tiling import BATCH_ROWS, SHARING_ROWS, invariant_tiling
from tinyvllm_kernels.rows.add import Add
from tinyvllm_kernels.rows.argmax import Argmax
from tinyvllm_kernels.rows.embedding import Embedding
from tinyvllm_kernels.rows.gelu_mul import GeluMul
from tinyvllm_kernels.rows.greedy_ids import GreedyIds
from tinyvllm_kernels.rows.norm_columns import NormColumns
from tinyvllm_kernels.rows.rms_norm import RmsNorm
from tinyvllm_kernels.rows.rope_append import RopeAppend
from tinyvllm_kernels.rows.scale import Scale
from tinyvllm_kernels.rows.silu_mul import SiluMul
from tinyvllm_kernels.wide.gate_up_silu_wide import GateUpSiluWide
from tinyvllm_kernels.wide.linear_residual_wide import LinearResidualWide
from tinyvllm_samplers.gpu.logprobs import Logprobs
from tinyvllm_samplers.gpu.penalties import Penalties
from tinyvllm_samplers.gpu.sample import Sample
from tinyvllm_samplers.gpu.sample_rules import RuleState

EPS = 1e-5
BLOCK_SIZE, MAX_BATCH, MAX_CONTEXT = 16, 256, 4096
SAMPLED_ROWS = 64
MANY_ROWS = (64, SHARING_ROWS, 2 * SHARING_ROWS)
"""The tiers of batch-invariant projections that others do not have."""

QWEN_HALF_B = ChainShape(24, 896, 14, 2, 64, 4864, 151936)
LLAMA_8B = ChainShape(32, 4096, 32, 8, 128, 14336, 128256)
DEMO = ChainShape(3, 192, 4, 2, 64, 512, 4096)
SHAPES = (LLAMA_1B, LLAMA_8B, QWEN_HALF_B, DEMO)

HOPPER_SOURCES = ("gate_up_silu_wide.cu", "linear_residual_wide.cu")
"""Made of instructions that sm_90a alone has."""

Make = Callable[[Gpu], object]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a source, as a launcher asks for it.

    Attributes:
        label: what it is for: rows, sizes.
        source: file name. defines: its macros, sorted.
        name: of the kernel. dynamic_bytes: dynamic shared memory that it is allowed.
    """

    label: str
    source: str
    defines: tuple[tuple[str, str | int], ...]
    name: str
    dynamic_bytes: int

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those that it compiles for."""
        return ("90a",) if self.source in HOPPER_SOURCES else ARCHITECTURES

    def __str__(self) -> str:
        return f"{self.name}: {self.label}"


class Recorder:
    """A device that compiles nothing and remembers what it was asked to."""

    properties = DeviceProperties("recorder", 90, 132, 1024, 2048, 32, 227 * 1024, 228 * 1024, 2**37)

    def __init__(self, label: str) -> None:
        self.label = label
        self.kernels: list[Kernel] = []
        self.memory = self

    def compile(self, source: Path, defines: Mapping[str, str | int] | None = None) -> _RecordedModule:
        return _RecordedModule(self, source.name, tuple(sorted((defines or {}).items())))

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        return Buffer(0, shape, np.dtype(dtype), None)

    def alloc_host(self, shape: tuple[int, ...], dtype: Any) -> HostBuffer:
        return HostBuffer(self.alloc(shape, dtype), np.empty(shape, dtype))

    def mark(self) -> None:
        """None is needed."""

    def fill(self, buffer: Buffer, byte: int) -> None:
        """Nothing to fill."""

    def upload(self, buffer: Buffer, array: Any) -> None:
        """Nothing to fill."""


@dataclass(frozen=True, slots=True)
class _RecordedModule:
    recorder: Recorder
    source: str
    defines: tuple[tuple[str, str | int], ...]

    def function(self, name: str, *, max_dynamic_shared_bytes: int = 0) -> str:
        recorder = self.recorder
        recorder.kernels.append(Kernel(recorder.label, self.source, self.defines, name, max_dynamic_shared_bytes))
        return name


def kernels_of(made: Iterator[tuple[str, Make]]) -> list[Kernel]:
    """What these launchers ask for, each once; a launcher that refuses because its x fits no card is left out."""
    found: dict[Kernel, None] = {}
    for label, make in made:
        recorder = Recorder(label)
        try:
            make(cast(Gpu, recorder))
        except ShapeError as error:
            if "of shared memory" not in str(error):
                raise
        found |= dict.fromkeys(recorder.kernels)
    return list(found)


def projections(shape: ChainShape, rows: int, *, invariant_on: int | None = None) -> Iterator[tuple[str, Make]]:
    """The launchers of one shape for up to so many rows; batch-invariant if an architecture says for which."""
    e, f, h, k, d = (
        shape.hidden_size, shape.intermediate_size, shape.num_heads, shape.num_kv_heads, shape.head_dim,
    )  # fmt: skip
    label = "1 row" if rows == 1 else "any rows" if rows > SHARING_ROWS else f"{rows} rows"
    label += ", batch-invariant," if invariant_on else ""
    width = (h + 2 * k) * d

    def cut(size_k: int, num_outputs: int, *, may_split: bool = True) -> dict[str, Any]:
        if invariant_on is None:
            return {"max_rows": rows}
        tiling = invariant_tiling(invariant_on, size_k, rows, num_outputs=num_outputs, may_split=may_split)
        return {"max_rows": rows, "tiling": tiling}

    yield f"{label} of {e}, {width} out", partial(LinearRows, in_features=e, out_features=width, **cut(e, width))
    for size_k in (h * d, f):
        made = partial(LinearResidual, in_features=size_k, out_features=e, **cut(size_k, e))
        yield f"{label} of {size_k}, {e} out", made
    heads: dict[str, Any] = {"num_heads": h, "num_kv_heads": k, "head_dim": d}
    yield f"{label} of {e}, head size {d}", partial(QkvRopeAppend, hidden_size=e, eps=EPS, **heads, **cut(e, width))
    mlp: dict[str, Any] = {"hidden_size": e, "intermediate_size": f}
    yield f"{label} of {e}, 2 x {f} out", partial(GateUpSilu, **mlp, eps=EPS, **cut(e, 2 * f))
    head_label = f"{label} of {e}, {shape.vocab_size} out"
    head_cut = cut(e, shape.vocab_size, may_split=False)
    yield head_label, partial(LogitsRows, hidden_size=e, vocab_size=shape.vocab_size, **head_cut)
    for head in (LmHeadLogits, LmHeadArgmax) if rows <= BATCH_ROWS[-1] else ():
        sizes: dict[str, Any] = {"hidden_size": e, "vocab_size": shape.vocab_size, "eps": EPS}
        yield head_label, partial(head, **sizes, **head_cut)


def wide(shape: ChainShape) -> Iterator[tuple[str, Make]]:
    """The launchers from 17 rows on, for Hopper."""
    e, f, q = shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim
    for rows in WIDE_ROWS:
        for size_k in (q, f) if rows in WIDE_RESIDUAL_ROWS else ():
            made = partial(LinearResidualWide, in_features=size_k, out_features=e, batch_rows=rows)
            yield f"{rows} rows of {size_k}, {e} out", made
        mlp: dict[str, Any] = {"hidden_size": e, "intermediate_size": f, "eps": EPS}
        yield f"{rows} rows of {e}, 2 x {f} out", partial(GateUpSiluWide, **mlp, batch_rows=rows)


def simple(shape: ChainShape) -> Iterator[tuple[str, Make]]:
    """The launchers that take any number of rows."""
    e, f, h, k, d = (
        shape.hidden_size, shape.intermediate_size, shape.num_heads, shape.num_kv_heads, shape.head_dim,
    )  # fmt: skip
    yield f"rows of {e}", partial(Embedding, hidden_size=e)
    yield f"rows of {e}", partial(RmsNorm, hidden_size=e, eps=EPS)
    yield "any rows", partial(Add, hidden_size=e)
    yield f"rows of {f}", partial(SiluMul, intermediate_size=f)
    yield f"rows of {f}", partial(GeluMul, intermediate_size=f)
    yield "any rows", partial(Scale, hidden_size=e)
    columns: dict[str, Any] = {"width": (h + 2 * k) * d, "first": h * d, "size": k * d}
    yield f"{k * d} of {(h + 2 * k) * d} columns", partial(NormColumns, **columns, eps=EPS)
    yield f"head size {d}", partial(RopeAppend, num_heads=h, num_kv_heads=k, head_dim=d)


def attention(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int = BLOCK_SIZE
) -> Iterator[tuple[str, Make]]:
    """Both attention kernels for these sizes, batch-invariant and not."""
    for batch_invariant in (False, True):
        sizes = AttentionSizes(
            num_heads, num_kv_heads, head_dim, block_size, MAX_BATCH, MAX_CONTEXT, batch_invariant=batch_invariant
        )
        label = f"head size {head_dim}, {sizes.group_size} heads a KV head, blocks of {block_size}"
        label += ", batch-invariant" if batch_invariant else ""
        yield label, partial(AttentionDecode, sizes=sizes)
        yield label, partial(AttentionPrefill, sizes=sizes)


def sampling(vocab_size: int) -> Iterator[tuple[str, Make]]:
    """Everything from logits to a token."""

    def penalties(device: Gpu) -> object:
        return Penalties(device, RuleState(device, num_rows=SAMPLED_ROWS, vocab_size=vocab_size))

    label = "any vocabulary"
    yield label, partial(Argmax, vocab_size=vocab_size, max_rows=SAMPLED_ROWS)
    yield label, partial(GreedyIds, vocab_size=vocab_size, max_rows=SAMPLED_ROWS)
    yield label, partial(Sample, vocab_size=vocab_size, max_rows=SAMPLED_ROWS)
    yield label, partial(Logprobs, vocab_size=vocab_size)
    yield label, penalties
    yield "any step", StepInputs

    def host_ring(device: Gpu) -> object:
        return HostRing(device, device.memory.alloc((64,), np.uint32), device.memory.alloc((64,), np.int32))

    yield "any step", host_ring


def table_kernels() -> list[Kernel]:
    """The kernels of Llama 3.2 1B, which the documentation lists: every one that may run in a step."""

    def made() -> Iterator[tuple[str, Make]]:
        s = LLAMA_1B
        yield from simple(s)
        for rows in BATCH_ROWS:
            yield from projections(s, rows)
        for rows in MANY_ROWS:
            yield from projections(s, rows, invariant_on=90)
        yield from wide(s)
        yield from attention(s.num_heads, s.num_kv_heads, s.head_dim)
        yield from sampling(s.vocab_size)

    return kernels_of(made())


def other_kernels() -> list[Kernel]:
    """What other models and settings ask for beside :func:`table_kernels`, each set of macros once."""

    def made() -> Iterator[tuple[str, Make]]:
        for shape in SHAPES:
            yield from simple(shape)
            for rows in BATCH_ROWS:
                yield from projections(shape, rows)
            for arch, rows in product((80, 90), MANY_ROWS):
                yield from projections(shape, rows, invariant_on=arch)
            yield from wide(shape)
        for head_dim in (16, 32, 64, 80, 96, 128):
            yield "", partial(RopeAppend, num_heads=4, num_kv_heads=2, head_dim=head_dim)
            yield from attention(8, 2, head_dim)
        for group_size in range(1, 9):
            for block_size in (8, 16, 32, 64):
                yield from attention(2 * group_size, 2, 64, block_size)

    seen = {(kernel.source, kernel.defines, kernel.name) for kernel in table_kernels()}
    found = {(kernel.source, kernel.defines, kernel.name): kernel for kernel in kernels_of(made())}
    return [kernel for key, kernel in found.items() if key not in seen]
