"""Layers as values: weights, and all that an operation must know to apply them.

Operations take these values, never bare arrays, so that a sharded, quantised or adapted layer needs no
change in a model.
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
        scheme: how the weight is stored; ``"dense"`` is the plain array, ``"rows"`` the plain array ``[out, in]`` of a
            checkpoint, as kernels of a device stream it.
        shard: the slice that is held here.
    """

    weight: Array
    bias: Array | None = None
    scheme: str = "dense"
    shard: Shard = Shard()

    @property
    def in_features(self) -> int:
        """Length of a row that goes in."""
        return int(self.weight.shape[1 if self.scheme == "rows" else 0])

    @property
    def out_features(self) -> int:
        """Length of a row that comes out."""
        return int(self.weight.shape[0 if self.scheme == "rows" else 1])


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square normalisation: ``weight`` is ``[E]`` (or ``[D]`` for a head), ``eps`` joins the mean square."""

    weight: Array
    eps: float


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosines and sines of the rotary embedding, ``[max_model_len, D / 2]`` float32 each."""

    cos: Array
    sin: Array


@dataclass(frozen=True, slots=True)
class AttentionProjection:
    """What turns hidden states into queries, keys and values.

    Attributes:
        qkv: one layer for all three; its output is ``[T, (H + 2K) * D]``, queries first, then keys, then values.
        rotary: applied to queries and keys.
        num_heads: ``H``.
        num_kv_heads: ``K``.
        head_dim: ``D``.
        q_norm, k_norm: normalisation of each head before the rotation (Qwen3), or None.
    """

    qkv: Linear
    rotary: RotaryTable
    num_heads: int
    num_kv_heads: int
    head_dim: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None
