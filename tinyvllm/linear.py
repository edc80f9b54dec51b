"""A linear layer as a value: its weight, and all that an operation must know to apply it.

Operations take a :class:`Linear`, never a bare array, so that a sharded, quantised or adapted
layer needs no change in a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyvllm.shapes import Array


@dataclass(frozen=True, slots=True)
class Shard:
    """Which slice of a layer this process holds: rank ``rank`` of ``world_size``."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = x @ weight + bias``.

    Attributes:
        weight: ``[in, out]`` as seen by the caller; it may be a transposed view of an ``[out, in]`` buffer.
        bias: ``[out]``, or None.
        scheme: how the weight is stored; ``"dense"`` is the plain array.
        shard: the slice that is held here.
    """

    weight: Array
    bias: Array | None = None
    scheme: str = "dense"
    shard: Shard = Shard()

    @property
    def in_features(self) -> int:
        """Length of a row that goes in."""
        return int(self.weight.shape[0])

    @property
    def out_features(self) -> int:
        """Length of a row that comes out."""
        return int(self.weight.shape[1])
