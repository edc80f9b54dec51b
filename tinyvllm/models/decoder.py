"""The decoder that Llama, Qwen and Mistral share: its tensors, its layers as calls of ops, and one step through it.

Knows operations by name and layers as values; knows nothing of files, devices or other sequences. Once every op has
run, nothing here allocates, waits or reads back, so that a step can be recorded as a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyvllm.batch import BatchTensors, LayerCache, protected
from tinyvllm.device import FLOAT32, Tensor
from tinyvllm.interfaces import AttentionCall, AttentionSpec, BoundAttention
from tinyvllm.layers import AttentionProjection, HeadSpec, Linear, Norm, linear_of
from tinyvllm.models.rotary import RotaryConfig
from tinyvllm.models.weights import WeightReader, tensors_read
from tinyvllm.ops.op import BoundOp
from tinyvllm.ops.table import OpTable
from tinyvllm.shapes import ModelShape
from tinyvllm.workspace import Workspace


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What a ``config.json`` says.

    Attributes:
        shape: the sizes.
        dtype: as stored (``bfloat16``, ``float16``, ``float32``).
        rms_norm_eps: of every norm.
        rotary: of queries and keys.
        has_qkv_bias, has_output_bias: biases in attention.
        has_mlp_bias: biases in the MLP.
        has_qk_norm: each head of queries and keys is normalised (Qwen3).
        has_tied_embeddings: the head is the embedding table.
        sliding_windows: ``[L]``, the window of each layer or None.
    """

    shape: ModelShape
    dtype: str
    rms_norm_eps: float
    rotary: RotaryConfig
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    has_tied_embeddings: bool
    sliding_windows: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The weights of one layer."""

    input_norm: Norm
    projection: AttentionProjection
    output: Linear
    post_attention_norm: Norm
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights: ``embedding`` is ``[V, E]``."""

    embedding: Tensor
    layers: tuple[DecoderLayer, ...]
    final_norm: Norm
    head: Linear


def expected_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this decoder holds, with its shape."""
    return tensors_read(lambda reader: load_weights(config, reader))


def load_weights(config: DecoderConfig, reader: WeightReader) -> DecoderWeights:
    """All weights, in the order of the layers."""
    s = config.shape
    rotary = reader.rotary(config.rotary, s.head_dim)
    embedding = reader.table("model.embed_tokens.weight", s.vocab_size, s.hidden_size)
    layers = []
    for i in range(s.num_layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        query, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim

        def norm(name: str, size: int, prefix: str = f"model.layers.{i}") -> Norm:
            return reader.norm(f"{prefix}.{name}", size, config.rms_norm_eps)

        input_norm = norm("input_layernorm", s.hidden_size)
        projection = AttentionProjection(
            qkv=reader.linear(
                {f"{attention}.q_proj": query, f"{attention}.k_proj": kv, f"{attention}.v_proj": kv},
                s.hidden_size, ["rms_norm_qkv_rope_append"], has_bias=config.has_qkv_bias,
                heads=HeadSpec(s.num_heads, s.num_kv_heads, s.head_dim, config.has_qk_norm),
            ),
            rotary=rotary,
            num_heads=s.num_heads,
            num_kv_heads=s.num_kv_heads,
            head_dim=s.head_dim,
            q_norm=norm("self_attn.q_norm", s.head_dim) if config.has_qk_norm else None,
            k_norm=norm("self_attn.k_norm", s.head_dim) if config.has_qk_norm else None,
        )  # fmt: skip
        output = reader.linear(
            {f"{attention}.o_proj": s.hidden_size}, query, ["linear_residual"], has_bias=config.has_output_bias
        )
        post_attention_norm = norm("post_attention_layernorm", s.hidden_size)
        gate_up = reader.linear(
            {f"{mlp}.gate_proj": s.intermediate_size, f"{mlp}.up_proj": s.intermediate_size},
            s.hidden_size, ["rms_norm_gate_up_silu"], has_bias=config.has_mlp_bias,
        )  # fmt: skip
        down = reader.linear(
            {f"{mlp}.down_proj": s.hidden_size}, s.intermediate_size, ["linear_residual"], has_bias=config.has_mlp_bias
        )
        layers.append(DecoderLayer(input_norm, projection, output, post_attention_norm, gate_up, down))
    final_norm = reader.norm("model.norm", s.hidden_size, config.rms_norm_eps)
    head = linear_of(embedding)  # tied: no second copy of the largest matrix
    if not config.has_tied_embeddings:
        head = reader.linear({"lm_head": s.vocab_size}, s.hidden_size, ["rms_norm_lm_head", "lm_head_argmax"])
    return DecoderWeights(embedding, tuple(layers), final_norm, head)


@dataclass(frozen=True, slots=True)
class _BoundLayer:
    """A layer and what serves each of its ops."""

    weights: DecoderLayer
    attention: AttentionSpec
    qkv: BoundOp
    add_output: BoundOp
    gate_up: BoundOp
    add_down: BoundOp


class Decoder:
    """One model on one device, bound to its operations and its attention.

    Args:
        shape: the sizes of the model.
        weights: on the device.
        ops: who serves each op there.
        attention: what computes attention over the cache.
        attention_specs: of each layer.
        workspace: the device and the limits of a step.
        is_greedy_here: whether :meth:`greedy` is ever called.
    """

    def __init__(
        self,
        shape: ModelShape,
        weights: DecoderWeights,
        ops: OpTable,
        attention: BoundAttention,
        attention_specs: Sequence[AttentionSpec],
        workspace: Workspace,
        *,
        is_greedy_here: bool,
    ) -> None:
        self._shape, self._weights, self._attention = shape, weights, attention
        self._embedding = ops.op("embedding")
        self._layers = [
            _BoundLayer(
                weights=layer,
                attention=spec,
                qkv=ops.op("rms_norm_qkv_rope_append", layer.projection),
                add_output=ops.op("linear_residual", layer.output),
                gate_up=ops.op("rms_norm_gate_up_silu", layer.gate_up),
                add_down=ops.op("linear_residual", layer.down),
            )
            for layer, spec in zip(weights.layers, attention_specs, strict=True)
        ]
        self._lm_head = ops.op("rms_norm_lm_head", weights.head)
        self._lm_head_argmax = ops.op("lm_head_argmax", weights.head) if is_greedy_here else None
        limits, alloc, dtype = workspace.limits, workspace.device.memory.alloc, workspace.device.activation_dtype
        query, max_rows = shape.num_heads * shape.head_dim, max(limits.max_logits_rows, limits.max_seqs)
        self._x = alloc((limits.max_tokens, shape.hidden_size), dtype)
        self._query = alloc((limits.max_tokens, query), dtype)
        self._mixed = alloc((limits.max_tokens, query), dtype)
        self._active = alloc((limits.max_tokens, shape.intermediate_size), dtype)
        self._rows = alloc((max_rows, shape.hidden_size), dtype)
        self._logits = alloc((limits.max_logits_rows, shape.vocab_size), FLOAT32)

    @property
    def vocab_size(self) -> int:
        """``V``."""
        return self._shape.vocab_size

    def forward(self, batch: BatchTensors, caches: Sequence[LayerCache], host_plan: Tensor | None) -> None:
        """Compute all layers, on a GPU: queue them; the residual stream stays in a tensor of the decoder.

        Args:
            batch: the step.
            caches: of each layer; they take the step's keys and values.
            host_plan: what the attention computed of the step's arrays on the host, on the device.
        """
        s, num_tokens = self._shape, batch.num_tokens
        x, active, mixed = self._x[:num_tokens], self._active[:num_tokens], self._mixed[:num_tokens]
        query = self._query[:num_tokens].reshape((num_tokens, s.num_heads, s.head_dim))
        seen = protected(query)  # by the attention, a plugin
        heads = mixed.reshape((num_tokens, s.num_heads, s.head_dim))
        plan = self._attention.plan(batch, host_plan)
        self._embedding(x, batch.token_ids, self._weights.embedding)
        is_first = True
        for layer, cache in zip(self._layers, caches, strict=True):
            weights = layer.weights
            layer.qkv(query, cache, x, weights.input_norm, weights.projection, batch)
            self._attention.forward(AttentionCall(heads, seen, cache, batch, plan, layer.attention, is_first))
            layer.add_output(x, mixed, weights.output)
            layer.gate_up(active, x, weights.post_attention_norm, weights.gate_up)
            layer.add_down(x, active, weights.down)
            is_first = False

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
