"""What a case of an op is: inputs, how the op is called, and what must come out."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.device import Device
from tinyvllm.devices.cpu import CpuDevice
from tinyvllm.interfaces import BindContext, OpSpec
from tinyvllm.layers import AttentionProjection, HeadSpec, Linear, LinearSpec, Norm, RotaryTable, linear_of
from tinyvllm.ops.catalogue import OPS
from tinyvllm.ops.table import OpTable
from tinyvllm.testing.numbers import BF16, BF16_ROUNDOFF, F32_ROUNDOFF, SMALLEST, Array, Float64, f64, rounded
from tinyvllm.testing.parameters import MAX_SEQUENCES, MAX_TOKENS, Parameters
from tinyvllm.testing.step import RandomStep
from tinyvllm.workspace import StepLimits, Workspace

EPS = 1e-5


class Case(ABC):
    """One op with one set of inputs, drawn from ``parameters``. Values are bfloat16, and so exact in float32 and 64."""

    op: str
    is_exact = False
    """Whether the op only copies."""
    row_arrays: tuple[str, ...] = ()
    """Attributes with an entry a row, where rows have nothing to do with one another."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.model = parameters.model
        self.rng = np.random.default_rng(parameters.seed)

    @classmethod
    def linear_spec(cls, parameters: Parameters) -> LinearSpec | None:
        """The linear layer that the op is called with; None: there is none."""
        return None

    @classmethod
    def head_spec(cls, parameters: Parameters) -> HeadSpec | None:
        """The heads that the op splits its rows into; None: it does not."""
        return None

    @abstractmethod
    def run(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Any]:
        """Call the op with tensors of the bench; its results by name, where they lie."""

    @abstractmethod
    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """Most that each result may be off before it is rounded itself.

        Args:
            expected: the results.
            roundoff: of what is stored between the parts of a fused op: 0 or that of bfloat16.
        """

    def expected(self) -> Mapping[str, Float64]:
        """The results by the definition, in float64. NaN: not written."""
        bench = Bench(CpuDevice(np.float64))
        return {name: f64(result) for name, result in self.run(definition(type(self), self.parameters), bench).items()}

    def mismatches(self, got: Mapping[str, Array], roundoff: float) -> list[Mismatch]:
        """What is wrong with results, one of each name at most."""
        expected = self.expected()
        errors = self.error(expected, roundoff)
        found = (
            _mismatch(name, got[name], expected[name], _allowed(got[name], expected[name], errors[name], self.is_exact))
            for name in expected
        )
        return [each for each in found if each is not None]

    def last_row(self) -> Case | None:
        """The same case with only its last row; None: its rows have to do with one another."""
        if not self.row_arrays:
            return None
        alone = copy.copy(self)
        for name in self.row_arrays:
            setattr(alone, name, getattr(self, name)[-1:])
        return alone

    def norm_value(self, weight: Any) -> Norm:
        """A norm with the case's epsilon."""
        return Norm(weight, EPS)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A result that is wrong: the first element, and how many are."""

    result: str
    index: tuple[int, ...]
    got: float
    expected: float
    allowed: float
    num_wrong: int
    num_elements: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.result}: {self.num_wrong} of {self.num_elements} wrong; at {list(self.index)}: got {self.got:g}, "
            f"expected {self.expected:g}, off by {abs(self.got - self.expected):.3g}, allowed {self.allowed:.3g}"
        )


def _allowed(got: Array, expected: Float64, error: Any, is_exact: bool) -> Float64:
    """An error and one rounding to the result's type."""
    if is_exact:
        return np.zeros(expected.shape)
    roundoff = BF16_ROUNDOFF if got.dtype == BF16 else F32_ROUNDOFF
    return np.broadcast_to(rounded(expected, np.asarray(error), roundoff) + SMALLEST, expected.shape)


def _mismatch(name: str, got: Array, expected: Float64, allowed: Float64) -> Mismatch | None:
    values = f64(got)
    is_right = np.where(np.isnan(expected), np.isnan(values), np.abs(values - expected) <= allowed)
    if is_right.all():
        return None
    index = tuple(int(i) for i in np.argwhere(~is_right)[0])
    return Mismatch(
        name, index, float(values[index]), float(expected[index]), float(allowed[index]),
        int((~is_right).sum()), is_right.size,
    )  # fmt: skip


def other_bits(name: str, in_company: Array, alone: Array) -> list[Mismatch]:
    """What differs between a row computed with others and the same row by itself; empty if not a bit does."""
    ours, theirs = (np.ascontiguousarray(row).view(np.uint8).reshape(*row.shape, -1) for row in (in_company, alone))
    differs = (ours != theirs).any(axis=-1)
    if not differs.any():
        return []
    index = tuple(int(i) for i in np.argwhere(differs)[0])
    what = f"{name} of the last row, alone and in company (batch_invariant)"
    return [Mismatch(what, index, float(in_company[index]), float(alone[index]), 0.0, int(differs.sum()), differs.size)]


class _Definitions:
    """The kernel of every simple op: its definition."""

    def ops(self) -> Sequence[str]:
        return [name for name, op in OPS.items() if not op.is_fused]

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        return []

    def bind(self, op: str, context: BindContext) -> Callable[..., None]:
        definition = OPS[op].definition
        assert definition is not None
        return definition


def definition(case: type[Case], parameters: Parameters) -> Callable[..., None]:
    """An op as its definition, or the composition of its parts' definitions, over arrays of float64."""
    spec = OpSpec(
        device="cpu",
        model=parameters.model,
        dtype="float64",
        block_size=parameters.block_size,
        batch_invariant=False,
        linear=case.linear_spec(parameters),
        heads=case.head_spec(parameters),
    )
    workspace = Workspace(CpuDevice(np.float64), limits_of(parameters))
    return OpTable(spec, {"definitions": _Definitions()}, {}, workspace).op_for(case.op, spec)


def limits_of(parameters: Parameters) -> StepLimits:
    """The limits of an engine of these parameters."""
    return StepLimits(
        max_tokens=max(MAX_TOKENS, parameters.num_rows),
        max_seqs=max(MAX_SEQUENCES, len(parameters.num_tokens)),
        max_context_len=parameters.max_context,
        block_size=parameters.block_size,
        max_logits_rows=parameters.max_logits_rows,
        batch_invariant=parameters.batch_invariant,
    )


class Bench:
    """Puts arrays on a device, and takes results from it. Everything is in place before an op is queued.

    Args:
        device: where to.
        prepare: what a kernel makes of a linear layer before it is called with it.
    """

    def __init__(self, device: Device, prepare: Callable[[Linear], Linear] = lambda layer: layer) -> None:
        self.device = device
        self._prepare = prepare
        self.is_padded = device.name != "cpu"
        """Whether a step has rows of padding."""

    def put(self, array: Array) -> Any:
        """A tensor with the contents of ``array``, bfloat16 as the device computes."""
        dtype = array.dtype
        if dtype == BF16 or (dtype.kind == "f" and self.device.activation_dtype == np.float64):
            dtype = self.device.activation_dtype
        tensor = self.device.memory.alloc(array.shape, dtype)
        self.device.memory.upload(tensor, np.ascontiguousarray(array.astype(dtype, copy=False)))
        self.device.synchronize()  # weights may be read before the predecessor has ended
        return tensor

    def poisoned(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """A tensor of NaN, or of -1; ``dtype`` None: as the device computes."""
        tensor = self.device.memory.alloc(shape, self.device.activation_dtype if dtype is None else dtype)
        self.device.memory.fill(tensor, 0xFF)
        self.device.synchronize()
        return tensor

    def norm(self, weight: Array) -> Norm:
        """A norm on the device."""
        return Norm(self.put(weight), EPS)

    def linear(self, weight: Array, bias: Array | None = None) -> Linear:
        """A linear layer on the device, ``weight`` ``[out, in]``."""
        return self._prepare(linear_of(self.put(weight), None if bias is None else self.put(bias)))

    def batch(self, step: RandomStep, *, is_decode: bool) -> BatchTensors:
        """A step on the device, padded where steps are."""
        batch = step.padded if self.is_padded else step.batch
        is_short = is_decode and self.is_padded
        return BatchTensors(
            token_ids=self.put(batch.token_ids),
            positions=self.put(batch.positions),
            slot_mapping=self.put(batch.slot_mapping),
            context_lens=self.put(batch.context_lens),
            block_tables=self.put(batch.block_tables),
            cu_seqlens_q=None if is_short else self.put(batch.cu_seqlens_q),
        )

    def rows(self, array: Array, num_real: int) -> Any:
        """The rows of a step, those of padding too where steps are padded."""
        return self.put(array if self.is_padded else array[:num_real])

    def cache(self, cache: LayerCache) -> LayerCache:
        """A layer's cache on the device."""
        return LayerCache(self.put(cache.key), self.put(cache.value))

    def projection(self, projection: AttentionProjection, qkv: Linear) -> AttentionProjection:
        """``projection`` on the device, with this layer."""
        p = projection
        return replace(
            p,
            qkv=qkv,
            rotary=RotaryTable(self.put(p.rotary.cos), self.put(p.rotary.sin)),
            q_norm=None if p.q_norm is None else self.norm(p.q_norm.weight),
            k_norm=None if p.k_norm is None else self.norm(p.k_norm.weight),
        )
