"""From the tensors of a checkpoint to the layers of a model, on any device.

A model says once which tensors it has, by reading them (``models/decoder.py``). What a checkpoint must hold is found by
letting it read from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import protected
from tinyvllm.device import BFLOAT16, FLOAT32, Device, Tensor
from tinyvllm.interfaces import Checkpoint
from tinyvllm.layers import HeadSpec, Linear, Norm, RotaryTable, linear_of
from tinyvllm.models.rotary import RotaryConfig, rotary_table

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": BFLOAT16,
    "float16": np.dtype(np.float16),
    "float32": FLOAT32,
}


Change: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
"""What a model makes of a tensor, of the same shape, when it is loaded rather than in every step."""


class TensorReader(Protocol):
    """Reads tensors of a checkpoint by name, as a model asks for them."""

    def rows(self, shapes: Mapping[str, tuple[int, ...]], change: Change | None) -> Any:
        """Some tensors one below the other, as one tensor of the device.

        Args:
            shapes: name and shape of each; all but the first size are the same.
            change: of each tensor, in float32, before it is rounded to the device's type; None: none.
        """
        ...

    def prepared(self, ops: Sequence[str], layer: Linear, heads: HeadSpec | None) -> Linear:
        """The layer as whoever serves these ops wants it; ``heads``: what its output is split into."""
        ...

    def rotary(self, config: RotaryConfig | None, head_dim: int) -> RotaryTable:
        """Cosines and sines of every position that a sequence can have; None: nothing is rotated."""
        ...


class WeightReader:
    """What models ask for: layers by name.

    Args:
        tensors: where they come from.
    """

    def __init__(self, tensors: TensorReader) -> None:
        self._tensors = tensors
        self._rotary: dict[tuple[RotaryConfig | None, int], RotaryTable] = {}

    def table(self, name: str, num_rows: int, num_columns: int) -> Tensor:
        """The matrix ``name``."""
        tensor: Tensor = self._tensors.rows({name: (num_rows, num_columns)}, None)
        return tensor

    def norm(self, name: str, size: int, eps: float, change: Change | None = None) -> Norm:
        """The norm ``name``, whose weight has so many numbers; ``change``: of the weight."""
        return Norm(self._tensors.rows({f"{name}.weight": (size,)}, change), eps)

    def linear(
        self,
        out_features: Mapping[str, int],
        in_features: int,
        ops: Sequence[str],
        *,
        has_bias: bool = False,
        heads: HeadSpec | None = None,
        change: Change | None = None,
    ) -> Linear:
        """One layer out of several that take the same input, their outputs side by side.

        Args:
            out_features: name of each, and how many outputs it has.
            in_features: length of a row that goes in.
            ops: the ops that the model calls with the layer.
            has_bias: every one of them has one.
            heads: that the output is split into; None: it is not.
            change: of each weight ``[out, in]`` and of each bias ``[out]``.
        """
        shapes = {f"{name}.weight": (size, in_features) for name, size in out_features.items()}
        weight = self._tensors.rows(shapes, change)
        bias = None
        if has_bias:
            bias = self._tensors.rows({f"{name}.bias": (size,) for name, size in out_features.items()}, change)
        return self._tensors.prepared(ops, linear_of(weight, bias), heads)

    def rotary(self, config: RotaryConfig | None, head_dim: int) -> RotaryTable:
        """Cosines and sines of every position that a sequence can have, one table for all layers of the same RoPE.

        Args:
            config: which RoPE; None: nothing is rotated.
            head_dim: ``D``.
        """
        key = config, head_dim
        if key not in self._rotary:
            self._rotary[key] = self._tensors.rotary(config, head_dim)
        return self._rotary[key]


class CheckpointReader:
    """Implements ``TensorReader``: tensors are read one at a time, so the peak is the weights plus the largest tensor.

    On the CPU the arrays are read-only: kernels of plugins are given them.

    Args:
        checkpoint: opened; holds every expected tensor.
        device: where the weights go, as its ``activation_dtype``.
        dtype: what they are rounded to first: ``bfloat16``, ``float16`` or ``float32``.
        max_model_len: longest sequence of the engine.
        num_positions: how many positions the rotary table must cover.
        prepare: the layer as whoever serves some ops wants it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: Device,
        *,
        dtype: str,
        max_model_len: int,
        num_positions: int,
        prepare: Callable[[Sequence[str], Linear, HeadSpec | None], Linear],
    ) -> None:
        self._checkpoint, self._device, self._dtype = checkpoint, device, _DTYPES[dtype]
        self._max_model_len, self._num_positions, self._prepare = max_model_len, num_positions, prepare

    def rows(self, shapes: Mapping[str, tuple[int, ...]], change: Change | None) -> Any:
        """Some tensors one below the other."""
        first = next(iter(shapes.values()))
        memory, dtype = self._device.memory, self._device.activation_dtype
        whole = memory.alloc((sum(shape[0] for shape in shapes.values()), *first[1:]), dtype)
        start = 0
        for name, shape in shapes.items():
            rounded = _converted(self._checkpoint.read(name), self._dtype)
            if change is not None:
                rounded = change(_converted(rounded, FLOAT32))
            memory.upload(whole[start : start + shape[0]], _converted(rounded, dtype))
            start += shape[0]
        return protected(whole)

    def prepared(self, ops: Sequence[str], layer: Linear, heads: HeadSpec | None) -> Linear:
        """The layer as whoever serves these ops wants it."""
        prepared = self._prepare(ops, layer, heads)
        if isinstance(prepared.weight, np.ndarray):
            prepared.weight.setflags(write=False)
        return prepared

    def rotary(self, config: RotaryConfig | None, head_dim: int) -> RotaryTable:
        """Cosines and sines of the positions, float32."""
        tables = []
        for values in rotary_table(config, head_dim, self._max_model_len, self._num_positions):
            table = self._device.memory.alloc(values.shape, FLOAT32)
            self._device.memory.upload(table, values)
            tables.append(protected(table))
        return RotaryTable(*tables)


class _Shapes:
    """Implements ``TensorReader``: takes note of what is asked for, and reads nothing."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def rows(self, shapes: Mapping[str, tuple[int, ...]], change: Change | None) -> Any:
        self.shapes.update(shapes)
        first = next(iter(shapes.values()))
        return _NoTensor((sum(shape[0] for shape in shapes.values()), *first[1:]))

    def prepared(self, ops: Sequence[str], layer: Linear, heads: HeadSpec | None) -> Linear:
        return layer

    def rotary(self, config: RotaryConfig | None, head_dim: int) -> RotaryTable:
        return RotaryTable(None, None)


class _NoTensor:
    """A shape where a tensor would be."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def tensors_read(load: Callable[[WeightReader], object]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model reads when it is loaded."""
    shapes = _Shapes()
    load(WeightReader(shapes))
    return shapes.shapes


def _converted(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array in another type."""
    if array.dtype == BFLOAT16 and dtype == FLOAT32:  # bfloat16 is the upper half of float32: no rounding, and fast
        return np.left_shift(array.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore"):  # a value beyond the range is infinite, as in every framework
        return array.astype(dtype, copy=False)
