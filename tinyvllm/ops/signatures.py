"""The signature of every op, the same on every device: outputs first, then inputs.

Tensors are row-major: NumPy arrays on the CPU, buffers on a GPU. Activations, weights and cache have the device's
``activation_dtype`` (float32 on the CPU, bfloat16 on a GPU) unless another type is named; sums are float32. An op
writes to its outputs and returns None. On a GPU it queues its work: on the hot path it neither allocates nor waits nor
reads back, so that a step can be recorded as a graph.
"""

from __future__ import annotations

from typing import Protocol

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.device import Tensor
from tinyvllm.layers import AttentionProjection, Linear, Norm


class Ops(Protocol):
    """One method for each op; an implementation is a callable of the same signature."""

    def embedding(self, out: Tensor, token_ids: Tensor, table: Tensor) -> None:
        """``out[t] = table[token_ids[t]]``; also used to gather rows of hidden states.

        Args:
            out: ``[T, E]``.
            token_ids: ``[T]``, int32.
            table: ``[N, E]``; on a GPU a row of NaN comes out for an id that is not below ``N``.
        """

    def rms_norm(self, out: Tensor, x: Tensor, norm: Norm) -> None:
        """``out[t] = x[t] / sqrt(mean(x[t]**2) + norm.eps) * norm.weight``.

        Args:
            out, x: ``[T, E]``; may be one tensor.
            norm: its weight is ``[E]``.
        """

    def linear(self, out: Tensor, x: Tensor, layer: Linear) -> None:
        """``out = x @ W + bias``.

        Args:
            out: ``[T, N]``.
            x: ``[T, K]``.
            layer: ``K`` features in, ``N`` out; its bias is ``[N]`` or None.
        """

    def add(self, residual: Tensor, x: Tensor) -> None:
        """``residual += x``, both ``[T, E]``."""

    def rope_append(
        self, query: Tensor, cache: LayerCache, qkv: Tensor, projection: AttentionProjection, batch: BatchTensors
    ) -> None:
        """Head norms if the projection has them, rotation; keys and values go to the cache.

        Args:
            query: ``[T, H, D]``.
            cache: changed at ``batch.slot_mapping``; a negative slot stores neither key nor value.
            qkv: ``[T, (H + 2K) D]``; queries, keys, values.
            projection: its rotary table is ``[P, D/2]``, float32.
            batch: positions and slots.
        """

    def silu_mul(self, out: Tensor, gate_up: Tensor) -> None:
        """``out = silu(gate) * up``, ``[T, F]``, of ``[T, 2F]``, the gate first."""

    def gelu_mul(self, out: Tensor, gate_up: Tensor) -> None:
        """``out = gelu(gate) * up`` by the hyperbolic tangent, ``[T, F]``, of ``[T, 2F]``, the gate first."""

    def scale(self, x: Tensor, factor: float) -> None:
        """``x *= factor``, ``[T, E]``."""

    def norm_columns(self, x: Tensor, first: int, norm: Norm) -> None:
        """``rms_norm`` of the columns ``first .. first + N - 1``, in place.

        Args:
            x: ``[T, W]``; other columns stay as they are.
            first: column; the first of each kernel's vector, so a multiple of 8 on a GPU.
            norm: its weight is ``[N]``.
        """

    def lm_head(self, logits: Tensor, x: Tensor, head: Linear) -> None:
        """``logits = x @ W``, ``[T, V]``, float32, not rounded on the way."""

    def argmax(self, token_ids: Tensor, logits: Tensor) -> None:
        """The lowest index of the largest logit, ``[T]`` int32, of ``[T, V]`` float32; -1 where there is none."""

    def rms_norm_qkv_rope_append(
        self,
        query: Tensor,
        cache: LayerCache,
        x: Tensor,
        norm: Norm,
        projection: AttentionProjection,
        batch: BatchTensors,
    ) -> None:
        """Everything of a layer before attention, of the residual stream ``x``, ``[T, E]``; see ``rope_append``."""

    def linear_residual(self, residual: Tensor, x: Tensor, layer: Linear) -> None:
        """``residual += x @ W + bias``; ``residual`` ``[T, N]``, ``x`` ``[T, K]``."""

    def rms_norm_gate_up_silu(self, out: Tensor, x: Tensor, norm: Norm, gate_up: Linear) -> None:
        """``silu(gate) * up`` of the normalised stream: ``out`` ``[T, F]``, ``x`` ``[T, E]``, ``2F`` features out."""

    def rms_norm_lm_head(self, logits: Tensor, x: Tensor, norm: Norm, head: Linear) -> None:
        """Final norm and logits: ``[T, V]``, float32, of ``x`` ``[T, E]``."""

    def lm_head_argmax(self, token_ids: Tensor, x: Tensor, norm: Norm, head: Linear) -> None:
        """Final norm and the most likely token, ``[T]`` int32; -1 where a logit is NaN."""
