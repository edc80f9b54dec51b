"""What an engine asks of a model: what its ``config.json`` says, its tensors, and its layers as blocks.

A file in this folder is one ``model_type``. Its ``Model`` reads the keys of its ``config.json``, names the tensors of a
layer, and says which blocks a layer is made of; the rest of a decoder is the same for all and stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from tinyvllm.batch import BatchTensors, LayerCache
from tinyvllm.device import Tensor
from tinyvllm.interfaces import AttentionSpec, BoundAttention
from tinyvllm.layers import Linear, Norm, linear_of
from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, read_dtype, read_shape
from tinyvllm.models.rotary import RopeDefaults, RotaryConfig, read_rotary
from tinyvllm.models.weights import Change, WeightReader, tensors_read
from tinyvllm.ops.table import OpTable
from tinyvllm.workspace import Workspace


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """Attention of one layer.

    Attributes:
        num_heads, num_kv_heads, head_dim: ``H``, ``K``, ``D``.
        scale: multiplies ``q @ k``.
        sliding_window: positions that a query sees, its own included; None: all up to its own.
        rotary: of queries and keys; None: they are not rotated.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None
    rotary: RotaryConfig | None


@dataclass(frozen=True, slots=True)
class LayerStep:
    """One step of one layer.

    Attributes:
        cache: takes the step's keys and values.
        batch: the step.
        plan: what the attention planned for it.
        is_first: whether this is the first layer.
    """

    cache: LayerCache
    batch: BatchTensors
    plan: Any
    is_first: bool


BoundBlock: TypeAlias = Callable[[Tensor, LayerStep], None]
"""Changes the residual stream, ``[T, E]``, in place; on a GPU it queues that."""


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What a block is given when it is bound to an engine.

    Attributes:
        ops: who serves each op.
        attention: over the cache.
        spec: of the layer's attention.
        workspace: memory between ops.
    """

    ops: OpTable
    attention: BoundAttention
    spec: AttentionSpec
    workspace: Workspace

    def rows(self, name: str, width: int) -> Tensor:
        """``[max_tokens, width]``: memory for a step, the same for all layers that ask for it by this name."""
        return self.workspace.buffer(name, (self.workspace.limits.max_tokens, width))


class Block(Protocol):
    """A part of a layer that adds something to the residual stream; holds the weights."""

    @property
    def products(self) -> Sequence[tuple[Linear, bool]]:
        """The linear layers, and whether the product of each is added to what is there."""
        ...

    def bind(self, context: BlockContext) -> BoundBlock:
        """The block as calls of ops, with all the memory that they need."""
        ...


@dataclass(frozen=True, slots=True)
class Weights:
    """A loaded model: ``embedding`` is ``[V, E]``; ``layers`` are the blocks of each."""

    embedding: Tensor
    layers: tuple[tuple[Block, ...], ...]
    final_norm: Norm
    head: Linear


class Model(ABC):
    """One model, as its ``config.json`` describes it.

    Args:
        config: the file.
        defaults: what the family takes where a key is absent.

    Attributes:
        shape: the sizes.
        dtype: as stored (``bfloat16``, ``float16``, ``float32``).
        rms_norm_eps: of every norm.
        rotary: the RoPE of the model; that of a layer may differ.
        has_tied_embeddings: the head is the embedding table.

    Raises:
        LoadError: a key is missing or wrong, or sizes do not fit together.
    """

    def __init__(self, config: ConfigReader, defaults: Defaults) -> None:
        self.shape, self.rotary = read_shape(config, defaults, self.read_rotary)
        self.dtype = read_dtype(config)
        self.rms_norm_eps = config.number("rms_norm_eps", defaults.rms_norm_eps)
        self.has_tied_embeddings = config.flag("tie_word_embeddings", defaults.has_tied_embeddings)

    @abstractmethod
    def blocks(self, weights: WeightReader, i: int) -> Sequence[Block]:
        """Layer ``i``, loaded."""

    def read_rotary(
        self, config: ConfigReader, head_dim: int, max_position_embeddings: int, rope: RopeDefaults
    ) -> RotaryConfig:
        """The RoPE that decides how long a sequence may be; see :func:`~tinyvllm.models.rotary.read_rotary`."""
        return read_rotary(config, head_dim, max_position_embeddings, rope)

    def attention(self, i: int) -> AttentionLayer:
        """Attention of layer ``i``: by default over all positions, scaled by ``1 / sqrt(D)``."""
        s = self.shape
        return AttentionLayer(s.num_heads, s.num_kv_heads, s.head_dim, s.head_dim**-0.5, None, self.rotary)

    def embedding_scale(self, dtype: np.dtype[Any]) -> float:
        """What rows of the embedding table are multiplied by where the residual stream begins.

        Args:
            dtype: of the stream.
        """
        return 1.0

    def final_norm(self, weights: WeightReader) -> Norm:
        """The norm before the head."""
        return self.norm(weights, "model.norm")

    @property
    def attention_layers(self) -> tuple[AttentionLayer, ...]:
        """Attention of every layer."""
        return tuple(self.attention(i) for i in range(self.shape.num_layers))

    @property
    def sliding_windows(self) -> tuple[int | None, ...]:
        """The window of every layer."""
        return tuple(layer.sliding_window for layer in self.attention_layers)

    def norm(self, weights: WeightReader, name: str, size: int | None = None, change: Change | None = None) -> Norm:
        """The norm ``name``, over the hidden size unless another is given; ``change``: of its weight."""
        return weights.norm(name, self.shape.hidden_size if size is None else size, self.rms_norm_eps, change)

    def qkv_names(self, name: str) -> Mapping[str, int]:
        """The tensors of queries, keys and values of an attention, and how many outputs each has."""
        s = self.shape
        query, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        return {f"{name}.q_proj": query, f"{name}.k_proj": kv, f"{name}.v_proj": kv}

    def gate_up_names(self, name: str) -> Mapping[str, int]:
        """The tensors of gate and up of an MLP, and how many outputs each has."""
        return {f"{name}.{each}_proj": self.shape.intermediate_size for each in ("gate", "up")}

    def load(self, weights: WeightReader) -> Weights:
        """All tensors, in the order of the layers."""
        s = self.shape
        embedding = weights.table("model.embed_tokens.weight", s.vocab_size, s.hidden_size)
        layers = tuple(tuple(self.blocks(weights, i)) for i in range(s.num_layers))
        final_norm = self.final_norm(weights)
        head = linear_of(embedding)  # tied: no second copy of the largest matrix
        if not self.has_tied_embeddings:
            head = weights.linear({"lm_head": s.vocab_size}, s.hidden_size, ["rms_norm_lm_head", "lm_head_argmax"])
        return Weights(embedding, layers, final_norm, head)


def expected_tensors(model: Model) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this model holds, with its shape."""
    return tensors_read(model.load)
