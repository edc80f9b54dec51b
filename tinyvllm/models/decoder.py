"""A model on one device, bound to its ops and its attention: one step through embedding, layers, norm and head.

Knows no family: layers are blocks. Once every op has run, nothing here allocates, waits or reads back, so that a step
can be recorded as a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.device import FLOAT32, Tensor
from tinyvllm.interfaces import AttentionSpec, BoundAttention
from tinyvllm.models.model import BlockContext, LayerStep, Model, Weights
from tinyvllm.ops.table import OpTable
from tinyvllm.workspace import Workspace


class Decoder:
    """One model on one device.

    Args:
        model: what it is.
        weights: of the model, on the device.
        ops: who serves each op there.
        attention: what computes attention over the cache.
        attention_specs: of each layer.
        workspace: the device and the limits of a step.
        is_greedy_here: whether :meth:`greedy` is ever called.
    """

    def __init__(
        self,
        model: Model,
        weights: Weights,
        ops: OpTable,
        attention: BoundAttention,
        attention_specs: Sequence[AttentionSpec],
        workspace: Workspace,
        *,
        is_greedy_here: bool,
    ) -> None:
        self._weights, self._attention = weights, attention
        self._embedding = ops.op("embedding")
        self._embedding_scale = model.embedding_scale(workspace.device.activation_dtype)
        self._scale = ops.op("scale") if self._embedding_scale != 1 else None
        contexts = [BlockContext(ops, attention, spec, workspace) for spec in attention_specs]
        self._layers = [
            [block.bind(context) for block in blocks] for blocks, context in zip(weights.layers, contexts, strict=True)
        ]
        self._lm_head = ops.op("rms_norm_lm_head", weights.head)
        self._lm_head_argmax = ops.op("lm_head_argmax", weights.head) if is_greedy_here else None
        limits, alloc, dtype = workspace.limits, workspace.device.memory.alloc, workspace.device.activation_dtype
        num_rows, hidden_size = max(limits.max_logits_rows, limits.max_seqs), model.shape.hidden_size
        self._x = alloc((limits.max_tokens, hidden_size), dtype)
        self._rows = alloc((num_rows, hidden_size), dtype)
        self._logits = alloc((limits.max_logits_rows, model.shape.vocab_size), FLOAT32)
        self.vocab_size = model.shape.vocab_size

    def forward(self, batch: BatchTensors, caches: Sequence[LayerCache], host_plan: Tensor | None) -> None:
        """Compute all layers, on a GPU: queue them; the residual stream stays in a tensor of the decoder.

        Args:
            batch: the step.
            caches: of each layer; they take the step's keys and values.
            host_plan: what the attention computed of the step's arrays on the host, on the device.
        """
        x, plan = self._x[: batch.num_tokens], self._attention.plan(batch, host_plan)
        self._embedding(x, batch.token_ids, self._weights.embedding)
        if self._scale is not None:
            self._scale(x, self._embedding_scale)
        for i, (blocks, cache) in enumerate(zip(self._layers, caches, strict=True)):
            step = LayerStep(cache, batch, plan, is_first=i == 0)
            for block in blocks:
                block(x, step)

    def logits(self, rows: Tensor | None, num_rows: int) -> Tensor:
        """The logits of some rows, ``[num_rows, V]`` float32, in a tensor that the next call overwrites.

        Args:
            rows: ``[num_rows]`` int32, indices of tokens; None: the first ``num_rows``.
            num_rows: at most ``max_logits_rows``.
        """
        logits = self._logits[:num_rows]
        self._lm_head(logits, self._hidden(rows, num_rows), self._weights.final_norm, self._weights.head)
        return logits

    def greedy(self, rows: Tensor | None, token_ids: Tensor) -> None:
        """The most likely next token of some rows, into ``token_ids``; see :meth:`logits`."""
        hidden = self._hidden(rows, token_ids.shape[0])
        assert self._lm_head_argmax is not None, "made with is_greedy_here=False"
        self._lm_head_argmax(token_ids, hidden, self._weights.final_norm, self._weights.head)

    def _hidden(self, rows: Tensor | None, num_rows: int) -> Tensor:
        if rows is None:
            return self._x[:num_rows]
        gathered = self._rows[:num_rows]
        self._embedding(gathered, rows, self._x)  # rows of any table, not only of the vocabulary's
        return gathered
