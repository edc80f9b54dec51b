"""Layers as values: weights, and all that an operation must know to apply them.

Operations take these values, never bare arrays, so that a quantised, adapted or sharded layer needs no change in a
model. The arrays lie where the model is: NumPy arrays on the CPU, buffers on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyvllm.shapes import Array

ROWS = "rows"
"""The scheme of a weight as checkpoints store it, ``[out, in]``: a row for each output."""
COLUMNS = "columns"
"""The scheme of a weight ``[in, out]``, as the matrix products of a CPU like it best."""


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = x @ W + bias``.

    Attributes:
        weight: stored as ``scheme`` says.
        bias: ``[out]``, or None.
        scheme: ``"rows"`` or ``"columns"``, or the name that a kernel gave to what its ``prepare`` returned.
        in_features: length of a row that goes in.
        out_features: length of a row that comes out.
    """

    weight: Array
    bias: Array | None
    scheme: str
    in_features: int
    out_features: int

    @property
    def spec(self) -> LinearSpec:
        """What implementations are chosen by."""
        return LinearSpec(self.scheme, self.in_features, self.out_features, self.bias is not None)


def linear_of(weight: Array, bias: Array | None = None, scheme: str = ROWS) -> Linear:
    """The layer of a matrix: ``[out, in]``, or ``[in, out]`` for the scheme ``"columns"``."""
    first, second = weight.shape
    num_in, num_out = (first, second) if scheme == COLUMNS else (second, first)
    return Linear(weight, bias, scheme, int(num_in), int(num_out))


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """A linear layer without its weights; see :class:`Linear`.

    Attributes:
        scheme: how the weight is stored.
        in_features: length of a row that goes in.
        out_features: length of a row that comes out.
        has_bias: whether there is one.
    """

    scheme: str
    in_features: int
    out_features: int
    has_bias: bool


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

    @property
    def spec(self) -> HeadSpec:
        """What implementations are chosen by."""
        return HeadSpec(self.num_heads, self.num_kv_heads, self.head_dim, self.q_norm is not None)


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The heads of an attention layer; see :class:`AttentionProjection`.

    Attributes:
        num_heads, num_kv_heads, head_dim: ``H``, ``K``, ``D``.
        has_norms: each head of queries and keys is normalised before the rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_norms: bool
