"""The decoder on a device: the same layers as :mod:`.decoder`, as ops over buffers that stay put.

Nothing here allocates, waits or reads back once every op has run once, so that a decode step can be recorded as a
graph. Knows ops by name; which kernels serve them, and for how many rows, is the op table's business.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyvllm.device import BFLOAT16, FLOAT32, Buffer
from tinyvllm.models.decoder import DecoderWeights
from tinyvllm.ops.device_values import (
    AttentionLayer,
    DeviceBatch,
    DeviceCache,
    DeviceLimits,
    Workspace,
    first_rows,
)
from tinyvllm.shapes import ModelShape

__all__ = ["DeviceBatch", "DeviceDecoder", "DeviceLimits"]


class DeviceDecoder:
    """One model on one device.

    Args:
        shape: the sizes of the model.
        weights: on that device, linear layers as rows.
        op: from the name of an op to the callable that serves it here; see ``DeviceOps``.
        workspace: the device and the limits of a step.
        is_greedy_here: whether :meth:`greedy` is ever called.
    """

    def __init__(
        self,
        shape: ModelShape,
        weights: DecoderWeights,
        op: Callable[[str], Callable[..., None]],
        workspace: Workspace,
        *,
        is_greedy_here: bool = True,
    ) -> None:
        self._shape, self._weights = shape, weights
        self._embedding = op("embedding")
        self._qkv = op("rms_norm_qkv_rope_append")
        self._attention = op("attention")
        self._linear_residual = op("linear_residual")
        self._gate_up = op("rms_norm_gate_up_silu")
        self._lm_head = op("rms_norm_lm_head")
        self._lm_head_argmax = op("lm_head_argmax") if is_greedy_here else None
        self._attention_layers = [
            AttentionLayer(layer.sliding_window, is_first=i == 0) for i, layer in enumerate(weights.layers)
        ]
        limits, alloc = workspace.limits, workspace.device.memory.alloc
        query, most_rows = shape.num_heads * shape.head_dim, max(limits.max_logits_rows, limits.max_seqs)
        self._x = alloc((limits.max_tokens, shape.hidden_size), BFLOAT16)
        self._query = alloc((limits.max_tokens, query), BFLOAT16)
        self._mixed = alloc((limits.max_tokens, query), BFLOAT16)
        self._active = alloc((limits.max_tokens, shape.intermediate_size), BFLOAT16)
        self._rows = alloc((most_rows, shape.hidden_size), BFLOAT16)
        self._logits = alloc((limits.max_logits_rows, shape.vocab_size), FLOAT32)

    def forward(self, batch: DeviceBatch, caches: list[DeviceCache]) -> None:
        """Queue all layers; the residual stream stays in a buffer of the decoder."""
        s, num_tokens = self._shape, batch.num_tokens
        x, active = first_rows(self._x, num_tokens), first_rows(self._active, num_tokens)
        query = self._query.view((num_tokens, s.num_heads, s.head_dim))
        mixed = first_rows(self._mixed, num_tokens)
        heads = mixed.view(query.shape)
        self._embedding(x, batch.token_ids, self._weights.embedding)
        for layer, attention, cache in zip(self._weights.layers, self._attention_layers, caches, strict=True):
            self._qkv(query, cache, x, layer.input_norm, layer.projection, batch)
            self._attention(heads, query, cache, batch, attention)
            self._linear_residual(x, mixed, layer.output)
            self._gate_up(active, x, layer.post_attention_norm, layer.gate_up)
            self._linear_residual(x, active, layer.down)

    def logits(self, rows: Buffer | None, num_rows: int) -> Buffer:
        """Queue the logits of some rows, ``[num_rows, V]`` float32, in a buffer that the next call overwrites.

        Args:
            rows: ``[num_rows]`` int32, indices of tokens; None: the first ``num_rows``.
            num_rows: at most ``max_logits_rows``.
        """
        logits = first_rows(self._logits, num_rows)
        self._lm_head(logits, self._hidden(rows, num_rows), self._weights.final_norm, self._weights.head)
        return logits

    def greedy(self, rows: Buffer | None, token_ids: Buffer) -> None:
        """Queue the most likely next token of some rows, into ``token_ids``; see :meth:`logits`."""
        assert self._lm_head_argmax is not None, "made with is_greedy_here=False"
        hidden = self._hidden(rows, token_ids.shape[0])
        self._lm_head_argmax(token_ids, hidden, self._weights.final_norm, self._weights.head)

    def _hidden(self, rows: Buffer | None, num_rows: int) -> Buffer:
        if rows is None:
            return first_rows(self._x, num_rows)
        gathered = first_rows(self._rows, num_rows)
        self._embedding(gathered, rows, self._x)  # rows of any table, not only of the vocabulary's
        return gathered
