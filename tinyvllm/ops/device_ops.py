"""The signature of every op on a device: outputs first, then inputs.

All arrays are :class:`~tinyvllm.device.Buffer`, row-major; activations, weights and cache are bfloat16
unless another type is named, sums are float32. Weights of linear layers are ``[out, in]`` (scheme ``rows``). An op
queues work and returns None: on the hot path it neither allocates nor waits nor reads back, so that a step can be
recorded as a graph.
"""

from __future__ import annotations

from typing import Protocol

from tinyvllm.device import Buffer
from tinyvllm.layers import AttentionProjection, Linear, Norm
from tinyvllm.ops.device_values import AttentionLayer, DeviceBatch, DeviceCache


class DeviceOps(Protocol):
    """One method for each op that a device has; an implementation is a callable of the same signature."""

    def embedding(self, out: Buffer, token_ids: Buffer, table: Buffer) -> None:
        """``out[t] = table[token_ids[t]]``; also used to gather rows of hidden states.

        Args:
            out: ``[T, E]``.
            token_ids: ``[T]``, int32.
            table: ``[N, E]``; a row of NaN comes out for an id that is not below ``N``.
        """

    def rms_norm(self, out: Buffer, x: Buffer, norm: Norm) -> None:
        """``out[t] = x[t] / sqrt(mean(x[t]**2) + norm.eps) * norm.weight``.

        Args:
            out, x: ``[T, E]``; may be one buffer.
            norm: its weight is ``[E]``.
        """

    def linear(self, out: Buffer, x: Buffer, layer: Linear) -> None:
        """``out = x @ layer.weight.T + layer.bias``.

        Args:
            out: ``[T, N]``.
            x: ``[T, K]``.
            layer: its weight is ``[N, K]``, its bias ``[N]`` or None.
        """

    def add(self, residual: Buffer, x: Buffer) -> None:
        """``residual += x``, both ``[T, E]``."""

    def rope_append(
        self, query: Buffer, cache: DeviceCache, qkv: Buffer, projection: AttentionProjection, batch: DeviceBatch
    ) -> None:
        """Head norms if the projection has them, rotation; keys and values go to the cache.

        Args:
            query: ``[T, H, D]``.
            cache: changed at ``batch.slot_mapping``; a negative slot stores neither key nor value.
            qkv: ``[T, (H + 2K) D]``; queries, keys, values.
            projection: its rotary table is ``[P, D/2]``, float32.
            batch: positions and slots.
        """

    def silu_mul(self, out: Buffer, gate_up: Buffer) -> None:
        """``out = silu(gate) * up``, ``[T, F]``, of ``[T, 2F]``, the gate first."""

    def lm_head(self, logits: Buffer, x: Buffer, head: Linear) -> None:
        """``logits = x @ head.weight.T``, ``[T, V]``, float32, not rounded on the way."""

    def argmax(self, token_ids: Buffer, logits: Buffer) -> None:
        """The lowest index of the largest logit, ``[T]`` int32, of ``[T, V]`` float32; -1 where there is none."""

    def attention_decode(
        self, out: Buffer, query: Buffer, cache: DeviceCache, batch: DeviceBatch, layer: AttentionLayer
    ) -> None:
        """Attention of the sequences that compute exactly one token; other rows of ``out`` are left alone.

        Args:
            out, query: ``[T, H, D]``.
            cache: the tokens of this step are in it.
            batch: block tables, context lengths and, unless every sequence has one token, ``cu_seqlens_q``.
            layer: its window. Scores are multiplied by ``1 / sqrt(D)``.
        """

    def attention_prefill(
        self, out: Buffer, query: Buffer, cache: DeviceCache, batch: DeviceBatch, layer: AttentionLayer
    ) -> None:
        """Causal attention of the sequences that compute two tokens or more; other rows of ``out`` are left alone.

        Args: as of ``attention_decode``; ``batch.cu_seqlens_q`` is given.
        """

    def attention(
        self, out: Buffer, query: Buffer, cache: DeviceCache, batch: DeviceBatch, layer: AttentionLayer
    ) -> None:
        """Causal attention of every row over its sequence; arguments as of ``attention_decode``."""

    def rms_norm_qkv_rope_append(
        self,
        query: Buffer,
        cache: DeviceCache,
        x: Buffer,
        norm: Norm,
        projection: AttentionProjection,
        batch: DeviceBatch,
    ) -> None:
        """Everything of a layer before attention, of the residual stream ``x``, ``[T, E]``; see ``rope_append``."""

    def linear_residual(self, residual: Buffer, x: Buffer, layer: Linear) -> None:
        """``residual += x @ layer.weight.T + layer.bias``; ``residual`` ``[T, N]``, ``x`` ``[T, K]``."""

    def rms_norm_gate_up_silu(self, out: Buffer, x: Buffer, norm: Norm, gate_up: Linear) -> None:
        """``silu(gate) * up`` of the normalised stream: ``out`` ``[T, F]``, ``x`` ``[T, E]``, weight ``[2F, E]``."""

    def rms_norm_lm_head(self, logits: Buffer, x: Buffer, norm: Norm, head: Linear) -> None:
        """Final norm and logits: ``[T, V]``, float32, of ``x`` ``[T, E]``."""

    def lm_head_argmax(self, token_ids: Buffer, x: Buffer, norm: Norm, head: Linear) -> None:
        """Final norm and the most likely token, ``[T]`` int32; -1 where a logit is NaN."""
