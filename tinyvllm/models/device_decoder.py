"""The decoder on a device: the same layers as :mod:`.decoder`, as launches of kernels over buffers that stay put.

Nothing here allocates, waits or reads back once it is made, so that a decode step can be recorded as a graph. Few rows
go through the fused kernels, which stream the weights once; many rows through the device's matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinyvllm.devices.interface import Buffer, Device
from tinyvllm.kernels.attention_decode import AttentionDecode
from tinyvllm.kernels.attention_prefill import AttentionPrefill
from tinyvllm.kernels.attention_sizes import AttentionSizes
from tinyvllm.kernels.embedding import Embedding
from tinyvllm.kernels.gate_up_silu import GateUpSilu
from tinyvllm.kernels.launch import BFLOAT16
from tinyvllm.kernels.linear import LinearRows
from tinyvllm.kernels.linear_residual import LinearResidual
from tinyvllm.kernels.lm_head import LmHeadArgmax, LmHeadLogits
from tinyvllm.kernels.qkv_rope_append import QkvRopeAppend
from tinyvllm.kernels.rms_norm import RmsNorm
from tinyvllm.kernels.rope_append import RopeAppend
from tinyvllm.kernels.silu_mul import SiluMul
from tinyvllm.kernels.tiling import Tiling, choose_tiling
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.device_weights import DeviceLayer, DeviceWeights

FUSED_ROWS = (1, 8, 16, 32)
"""Most rows of each set of fused kernels; more rows go to the matrix products."""
_INVARIANT_TILE = 8


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """The arrays of a step on the device; see :class:`~tinyvllm.batch.Batch`.

    Rows of padding have position 0, slot -1 and context length 0.
    """

    token_ids: Buffer
    positions: Buffer
    slot_mapping: Buffer
    context_lens: Buffer
    block_tables: Buffer
    cu_seqlens_q: Buffer | None  # None: every sequence computes one token

    @property
    def num_tokens(self) -> int:
        """``T``."""
        return self.token_ids.shape[0]


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What buffers are made for.

    Attributes:
        max_tokens: of a step.
        max_seqs: of a step.
        max_context_len: of a sequence.
        block_size: of the KV cache.
        max_logits_rows: rows whose logits are held at once.
        batch_invariant: a row's bits depend on its own sequence only.
    """

    max_tokens: int
    max_seqs: int
    max_context_len: int
    block_size: int
    max_logits_rows: int
    batch_invariant: bool


class DeviceDecoder:
    """One model on one device.

    Args:
        device: where it runs.
        config: of the decoder.
        weights: on that device.
        limits: of a step.
    """

    def __init__(self, device: Device, config: DecoderConfig, weights: DeviceWeights, limits: DeviceLimits) -> None:
        self._device, self._config, self._weights, self._limits = device, config, weights, limits
        s, eps = config.shape, config.rms_norm_eps
        self._embedding = Embedding(device, hidden_size=s.hidden_size)
        self._norm = RmsNorm(device, hidden_size=s.hidden_size, eps=eps)
        self._rope = RopeAppend(
            device, num_heads=s.num_heads, num_kv_heads=s.num_kv_heads, head_dim=s.head_dim, eps=eps
        )
        self._silu = SiluMul(device, intermediate_size=s.intermediate_size)
        self._fused: dict[int, _Fused] = {}
        self._heads: dict[tuple[int, bool], LmHeadLogits | LmHeadArgmax] = {}
        self._attention = {window: self._make_attention(window) for window in dict.fromkeys(config.sliding_windows)}
        query = s.num_heads * s.head_dim
        self._x = self._alloc(limits.max_tokens, s.hidden_size)
        self._normed = self._alloc(limits.max_tokens, s.hidden_size)
        self._qkv = self._alloc(limits.max_tokens, query + 2 * s.num_kv_heads * s.head_dim)
        self._query = self._alloc(limits.max_tokens, query)
        self._mixed = self._alloc(limits.max_tokens, query)
        self._gate_up = self._alloc(limits.max_tokens, 2 * s.intermediate_size)
        self._active = self._alloc(limits.max_tokens, s.intermediate_size)
        self._rows = self._alloc(limits.max_logits_rows, s.hidden_size)
        self._logits = device.memory.alloc((limits.max_logits_rows, s.vocab_size), np.float32)

    def forward(self, batch: DeviceBatch, caches: list[tuple[Buffer, Buffer]]) -> None:
        """Queue all layers; the residual stream stays in a buffer of the decoder."""
        x = self._first(self._x, batch.num_tokens)
        self._embedding(x, batch.token_ids, self._weights.embedding)
        for i, (layer, cache) in enumerate(zip(self._weights.layers, caches, strict=True)):
            query = self._project(x, layer, cache, batch)
            mixed = self._attend(query, layer, cache, batch, is_first=i == 0)
            self._finish_layer(x, mixed, layer)

    def logits(self, rows: Buffer | None, num_rows: int) -> Buffer:
        """Queue the logits of some rows, ``[num_rows, V]`` float32, in a buffer that the next call overwrites.

        Args:
            rows: ``[num_rows]`` int32, indices of tokens; None: the first ``num_rows``.
            num_rows: at most ``max_logits_rows``.
        """
        logits = self._logits.view((num_rows, self._config.shape.vocab_size))
        head = self._head(num_rows, is_argmax=False)
        head(logits, self._hidden(rows, num_rows), self._weights.final_norm, self._weights.head)
        return logits

    def greedy(self, rows: Buffer | None, token_ids: Buffer) -> None:
        """Queue the most likely next token of some rows, into ``token_ids``; see :meth:`logits`."""
        num_rows = token_ids.shape[0]
        head = self._head(num_rows, is_argmax=True)
        head(token_ids, self._hidden(rows, num_rows), self._weights.final_norm, self._weights.head)

    def _hidden(self, rows: Buffer | None, num_rows: int) -> Buffer:
        if rows is None:
            return self._first(self._x, num_rows)
        gathered = self._first(self._rows, num_rows)
        self._embedding(gathered, rows, self._x)  # rows of any table, not only of the vocabulary's
        return gathered

    def _project(self, x: Buffer, layer: DeviceLayer, cache: tuple[Buffer, Buffer], batch: DeviceBatch) -> Buffer:
        """Queries ``[T, H, D]``; keys and values are in the cache then."""
        s, w, num_tokens = self._config.shape, self._weights, batch.num_tokens
        query = self._query.view((num_tokens, s.num_heads, s.head_dim))
        places = (w.cos, w.sin, batch.positions, batch.slot_mapping)
        fused = self._fused_for(num_tokens)
        if fused is not None and layer.query_norm is None:
            fused.qkv(query, *cache, x, layer.input_norm, layer.qkv, layer.qkv_bias, *places)
            return query
        normed = self._first(self._normed, num_tokens)
        qkv = self._first(self._qkv, num_tokens)
        self._norm(normed, x, layer.input_norm)
        if fused is not None or layer.qkv_bias is not None:
            (fused or self._fused_up_to(self._limits.max_tokens)).linear(qkv, normed, layer.qkv, layer.qkv_bias)
        else:
            self._device.gemm(qkv, normed, layer.qkv)
        self._rope(query, *cache, qkv, *places, query_norm=layer.query_norm, key_norm=layer.key_norm)
        return query

    def _attend(
        self, query: Buffer, layer: DeviceLayer, cache: tuple[Buffer, Buffer], batch: DeviceBatch, *, is_first: bool
    ) -> Buffer:
        """``[T, H * D]``."""
        decode, prefill = self._attention[layer.sliding_window]
        mixed = self._first(self._mixed, batch.num_tokens)
        out = mixed.view(query.shape)
        plan = (batch.block_tables, batch.context_lens)
        if batch.cu_seqlens_q is None:
            decode(out, query, *cache, *plan, is_plan_older=not is_first)
            return mixed
        decode(out, query, *cache, *plan, cu_seqlens_q=batch.cu_seqlens_q, is_plan_older=not is_first)
        prefill(out, query, *cache, *plan, batch.cu_seqlens_q, min_queries=2, is_plan_older=not is_first)
        return mixed

    def _finish_layer(self, x: Buffer, mixed: Buffer, layer: DeviceLayer) -> None:
        """Output projection and MLP, added to the residual stream."""
        num_tokens = x.shape[0]
        active = self._first(self._active, num_tokens)
        fused = self._fused_for(num_tokens)
        if fused is not None:
            fused.output(x, mixed, layer.output, layer.output_bias)
            fused.gate_up(active, x, layer.post_attention_norm, layer.gate_up)
            fused.down(x, active, layer.down)
            return
        if layer.output_bias is None:
            self._device.gemm(x, mixed, layer.output, accumulate=True)
        else:
            self._fused_up_to(self._limits.max_tokens).output(x, mixed, layer.output, layer.output_bias)
        normed, gate_up = self._first(self._normed, num_tokens), self._first(self._gate_up, num_tokens)
        self._norm(normed, x, layer.post_attention_norm)
        self._device.gemm(gate_up, normed, layer.gate_up)
        self._silu(active, gate_up)
        self._device.gemm(x, active, layer.down, accumulate=True)

    def _fused_for(self, num_tokens: int) -> _Fused | None:
        """The kernels for so many rows; None: the matrix products are faster."""
        if self._limits.batch_invariant:
            return self._fused_up_to(self._limits.max_tokens)
        tier = next((rows for rows in FUSED_ROWS if rows >= num_tokens), None)
        return None if tier is None else self._fused_up_to(tier)

    def _fused_up_to(self, max_rows: int) -> _Fused:
        if max_rows not in self._fused:
            self._fused[max_rows] = _Fused(self._device, self._config, max_rows, self._limits.batch_invariant)
        return self._fused[max_rows]

    def _head(self, num_rows: int, *, is_argmax: bool) -> Callable[[Buffer, Buffer, Buffer, Buffer], None]:
        most = self._limits.max_logits_rows
        tier = most if self._limits.batch_invariant else next((rows for rows in FUSED_ROWS if rows >= num_rows), most)
        key = (max(tier, num_rows), is_argmax)
        if key not in self._heads:
            s = self._config.shape
            made = LmHeadArgmax if is_argmax else LmHeadLogits
            tiling = _invariant_tiling(s.hidden_size) if self._limits.batch_invariant else None
            self._heads[key] = made(
                self._device,
                hidden_size=s.hidden_size,
                vocab_size=s.vocab_size,
                eps=self._config.rms_norm_eps,
                max_rows=key[0],
                tiling=tiling,
            )
        return self._heads[key]

    def _make_attention(self, window: int | None) -> tuple[AttentionDecode, AttentionPrefill]:
        s = self._config.shape
        sizes = AttentionSizes(
            num_heads=s.num_heads,
            num_kv_heads=s.num_kv_heads,
            head_dim=s.head_dim,
            block_size=self._limits.block_size,
            max_batch=self._limits.max_seqs,
            max_context_len=self._limits.max_context_len,
            sliding_window=window,
            batch_invariant=self._limits.batch_invariant,
        )
        return AttentionDecode(self._device, sizes=sizes), AttentionPrefill(self._device, sizes=sizes)

    def _alloc(self, rows: int, columns: int) -> Buffer:
        return self._device.memory.alloc((rows, columns), BFLOAT16)

    @staticmethod
    def _first(buffer: Buffer, rows: int) -> Buffer:
        return buffer.view((rows, buffer.shape[1]))


class _Fused:
    """The fused kernels for up to ``max_rows`` rows."""

    def __init__(self, device: Device, config: DecoderConfig, max_rows: int, is_invariant: bool) -> None:
        s, eps = config.shape, config.rms_norm_eps
        query = s.num_heads * s.head_dim
        wide = _invariant_tiling(s.hidden_size) if is_invariant else None
        self.qkv = QkvRopeAppend(
            device,
            hidden_size=s.hidden_size,
            num_heads=s.num_heads,
            num_kv_heads=s.num_kv_heads,
            head_dim=s.head_dim,
            eps=eps,
            max_rows=max_rows,
            tiling=wide,
        )
        self.linear = LinearRows(
            device,
            in_features=s.hidden_size,
            out_features=query + 2 * s.num_kv_heads * s.head_dim,
            max_rows=max_rows,
            tiling=wide,
        )
        self.output = LinearResidual(
            device,
            in_features=query,
            out_features=s.hidden_size,
            max_rows=max_rows,
            tiling=_invariant_tiling(query) if is_invariant else None,
        )
        self.gate_up = GateUpSilu(
            device,
            hidden_size=s.hidden_size,
            intermediate_size=s.intermediate_size,
            eps=eps,
            max_rows=max_rows,
            tiling=wide,
        )
        self.down = LinearResidual(
            device,
            in_features=s.intermediate_size,
            out_features=s.hidden_size,
            max_rows=max_rows,
            tiling=_invariant_tiling(s.intermediate_size) if is_invariant else None,
        )


def _invariant_tiling(size_k: int) -> Tiling:
    """One cut for any number of rows: the tensor cores' smallest, also for a single row."""
    return choose_tiling(size_k, _INVARIANT_TILE)
