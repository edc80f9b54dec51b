"""What a case of an op is: inputs, how the op is called on the CPU and on a device, and what must come out."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvllm.batch import Batch, LayerCache
from tinyvllm.device import Buffer, Gpu
from tinyvllm.layers import AttentionProjection, Linear, Norm, RotaryTable
from tinyvllm.ops.catalogue import OPS
from tinyvllm.ops.device_values import DeviceBatch, DeviceCache
from tinyvllm.testing.numbers import BF16, BF16_ROUNDOFF, F32_ROUNDOFF, SMALLEST, Array, Float64, f64, rounded
from tinyvllm.testing.parameters import Parameters

EPS = 1e-5
Cast = Callable[[Array], Array]


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

    @abstractmethod
    def on_host(self, op: Callable[..., Any], cast: Cast) -> Mapping[str, Array]:
        """The results of a CPU's op, by name; ``cast`` makes arrays of the type it computes with."""

    @abstractmethod
    def on_device(self, op: Callable[..., None], bench: Bench) -> Mapping[str, Buffer]:
        """Queues a device's op; the buffers of the same results."""

    @abstractmethod
    def error(self, expected: Mapping[str, Float64], roundoff: float) -> Mapping[str, Any]:
        """Most that each result may be off before it is rounded itself.

        Args:
            expected: the results.
            roundoff: of what is stored between the parts of a fused op: 0 or that of bfloat16.
        """

    def expected(self) -> Mapping[str, Float64]:
        """The results by the definition, in float64. NaN: not written."""
        return {name: f64(np.asarray(result)) for name, result in self.on_host(definition(self.op), f64).items()}

    def mismatches(self, got: Mapping[str, Array], roundoff: float) -> list[Mismatch]:
        """What is wrong with results, one of each name at most."""
        expected = self.expected()
        errors = self.error(expected, roundoff)
        found = (
            _mismatch(name, got[name], expected[name], _allowed(got[name], expected[name], errors[name], self.is_exact))
            for name in expected
        )
        return [each for each in found if each is not None]

    def last_row(self) -> Case:
        """The same case with only its last row."""
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


def definition(op: str) -> Callable[..., Any]:
    """An op as the composition of the NumPy definitions of its parts; exact inputs in float64 stay so."""
    compose = OPS[op].compose
    if compose is not None:
        return compose(definition)
    reference = OPS[op].reference
    assert reference is not None
    return reference


class Bench:
    """Puts arrays on a device, and takes results from it. Everything is in place before an op is queued."""

    def __init__(self, device: Gpu) -> None:
        self.device = device

    def put(self, array: Array) -> Buffer:
        """A buffer with the contents of ``array``."""
        buffer = self.device.memory.alloc(array.shape, array.dtype)
        self.device.memory.upload(buffer, np.ascontiguousarray(array))
        self.device.synchronize()  # weights may be read before the predecessor has ended
        return buffer

    def poisoned(self, shape: tuple[int, ...], dtype: Any = BF16) -> Buffer:
        """A buffer of NaN, or of -1."""
        buffer = self.device.memory.alloc(shape, dtype)
        self.device.memory.fill(buffer, 0xFF)
        self.device.synchronize()
        return buffer

    def norm(self, weight: Array) -> Norm:
        """A norm on the device."""
        return Norm(self.put(weight), EPS)

    def linear(self, weight: Array, bias: Array | None = None) -> Linear:
        """A linear layer on the device, ``weight`` ``[out, in]``."""
        return Linear(self.put(weight), None if bias is None else self.put(bias), scheme="rows")

    def batch(self, batch: Batch, *, is_decode: bool) -> DeviceBatch:
        """A step on the device."""
        return DeviceBatch(
            token_ids=self.put(batch.token_ids),
            positions=self.put(batch.positions),
            slot_mapping=self.put(batch.slot_mapping),
            context_lens=self.put(batch.context_lens),
            block_tables=self.put(batch.block_tables),
            cu_seqlens_q=None if is_decode else self.put(batch.cu_seqlens_q),
        )

    def cache(self, cache: LayerCache) -> DeviceCache:
        """A layer's cache on the device."""
        return self.put(cache.key), self.put(cache.value)

    def projection(self, projection: AttentionProjection, weight: Array, bias: Array | None) -> AttentionProjection:
        """``projection`` on the device, with these weights ``[out, in]``."""
        p = projection
        return AttentionProjection(
            qkv=self.linear(weight, bias),
            rotary=RotaryTable(self.put(p.rotary.cos), self.put(p.rotary.sin)),
            num_heads=p.num_heads,
            num_kv_heads=p.num_kv_heads,
            head_dim=p.head_dim,
            q_norm=None if p.q_norm is None else self.norm(p.q_norm.weight),
            k_norm=None if p.k_norm is None else self.norm(p.k_norm.weight),
        )


def host_linear(weight: Array, bias: Array | None, cast: Cast) -> Linear:
    """The layer ``[out, in]`` as the CPU's ops take it."""
    return Linear(cast(weight).T, None if bias is None else cast(bias))
