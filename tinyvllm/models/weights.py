"""From the names of a Hugging Face checkpoint to the decoder's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Float32, read_only
from tinyvllm.interfaces import Checkpoint
from tinyvllm.layers import AttentionProjection, Linear, Norm, RotaryTable
from tinyvllm.models.decoder import DecoderConfig, DecoderLayer, DecoderWeights
from tinyvllm.models.rotary import rotary_table

_DTYPES: Mapping[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
}
# Transposed copies go by blocks of this many rows: a block of the source stays in the cache while its columns
# are written (measured on [8192, 2048]: 0.35 s at once, 0.04 s by blocks).
_TRANSPOSE_ROWS = 16


def expected_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this decoder holds, with its shape."""
    s = config.shape
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (s.vocab_size, s.hidden_size)}
    for i in range(s.num_layers):
        tensors |= {f"model.layers.{i}.{name}": shape for name, shape in _layer_tensors(config).items()}
    tensors["model.norm.weight"] = (s.hidden_size,)
    if not config.has_tied_embeddings:
        tensors["lm_head.weight"] = (s.vocab_size, s.hidden_size)
    return tensors


def _layer_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    s = config.shape
    query, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
    linears = {
        "self_attn.q_proj": (query, s.hidden_size, config.has_qkv_bias),
        "self_attn.k_proj": (kv, s.hidden_size, config.has_qkv_bias),
        "self_attn.v_proj": (kv, s.hidden_size, config.has_qkv_bias),
        "self_attn.o_proj": (s.hidden_size, query, config.has_output_bias),
        "mlp.gate_proj": (s.intermediate_size, s.hidden_size, config.has_mlp_bias),
        "mlp.up_proj": (s.intermediate_size, s.hidden_size, config.has_mlp_bias),
        "mlp.down_proj": (s.hidden_size, s.intermediate_size, config.has_mlp_bias),
    }
    tensors: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (s.hidden_size,),
        "post_attention_layernorm.weight": (s.hidden_size,),
    }
    for name, (rows, columns, has_bias) in linears.items():
        tensors[f"{name}.weight"] = (rows, columns)
        if has_bias:
            tensors[f"{name}.bias"] = (rows,)
    if config.has_qk_norm:
        tensors["self_attn.q_norm.weight"] = (s.head_dim,)
        tensors["self_attn.k_norm.weight"] = (s.head_dim,)
    return tensors


def load_weights(
    config: DecoderConfig, checkpoint: Checkpoint, dtype: str, max_model_len: int, num_positions: int | None = None
) -> DecoderWeights:
    """The decoder's weights for the CPU: float32 holding values rounded to ``dtype``.

    Tensors are read one at a time, so the peak is the weights plus the largest tensor. The arrays are read-only:
    kernels of plugins are given them.

    Args:
        config: of the decoder.
        checkpoint: opened; holds every expected tensor.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        max_model_len: longest sequence of the engine.
        num_positions: how many positions the rotary table must cover; None: ``max_model_len``.
    """
    s = config.shape
    reader = _Reader(checkpoint, dtype)
    rotary = RotaryTable(*rotary_table(config.rotary, s.head_dim, max_model_len, num_positions))
    embedding = reader.array("model.embed_tokens.weight")
    layers = tuple(_load_layer(config, reader, rotary, i) for i in range(s.num_layers))
    # A tied head is the table seen the other way round: no second copy of the largest matrix.
    head = Linear(embedding.T) if config.has_tied_embeddings else reader.linear("lm_head")
    return DecoderWeights(embedding, layers, Norm(reader.array("model.norm.weight"), config.rms_norm_eps), head)


def _load_layer(config: DecoderConfig, reader: _Reader, rotary: RotaryTable, i: int) -> DecoderLayer:
    prefix, eps, s = f"model.layers.{i}", config.rms_norm_eps, config.shape

    def norm(name: str) -> Norm:
        return Norm(reader.array(f"{prefix}.{name}.weight"), eps)

    return DecoderLayer(
        input_norm=norm("input_layernorm"),
        projection=AttentionProjection(
            qkv=reader.linear(*(f"{prefix}.self_attn.{x}_proj" for x in "qkv"), has_bias=config.has_qkv_bias),
            rotary=rotary,
            num_heads=s.num_heads,
            num_kv_heads=s.num_kv_heads,
            head_dim=s.head_dim,
            q_norm=norm("self_attn.q_norm") if config.has_qk_norm else None,
            k_norm=norm("self_attn.k_norm") if config.has_qk_norm else None,
        ),
        output=reader.linear(f"{prefix}.self_attn.o_proj", has_bias=config.has_output_bias),
        post_attention_norm=norm("post_attention_layernorm"),
        gate_up=reader.linear(f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj", has_bias=config.has_mlp_bias),
        down=reader.linear(f"{prefix}.mlp.down_proj", has_bias=config.has_mlp_bias),
        sliding_window=config.sliding_windows[i],
    )


class _Reader:
    """Tensors of a checkpoint as float32, rounded to one dtype."""

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self._checkpoint = checkpoint
        self._dtype = np.dtype(_DTYPES[dtype])

    def array(self, name: str) -> Float32:
        return read_only(_to_float32(self._read(name)))

    def linear(self, *names: str, has_bias: bool = False) -> Linear:
        """One layer out of several that take the same input, their outputs side by side."""
        metas = [self._checkpoint.meta(f"{name}.weight") for name in names]
        weight = np.empty((metas[0].shape[1], sum(m.shape[0] for m in metas)), np.float32)
        start = 0
        for name, meta in zip(names, metas, strict=True):
            _copy_transposed(self._read(f"{name}.weight"), weight[:, start : start + meta.shape[0]])
            start += meta.shape[0]
        bias = np.concatenate([self.array(f"{name}.bias") for name in names]) if has_bias else None
        return Linear(read_only(weight), bias)

    def _read(self, name: str) -> NDArray[Any]:
        stored = self._checkpoint.read(name)
        # float32 holds bfloat16 and float16 exactly; only a narrower target rounds.
        if stored.dtype == self._dtype or self._dtype == np.float32:
            return stored
        return _cast(stored, self._dtype)


def _copy_transposed(source: NDArray[Any], target: Float32) -> None:
    for start in range(0, len(source), _TRANSPOSE_ROWS):
        target[:, start : start + _TRANSPOSE_ROWS] = _to_float32(source[start : start + _TRANSPOSE_ROWS]).T


def _to_float32(array: NDArray[Any]) -> Float32:
    if array.dtype == ml_dtypes.bfloat16:
        # bfloat16 is the upper half of float32.
        return np.left_shift(array.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    return np.ascontiguousarray(_cast(array, np.dtype(np.float32)))


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # a value beyond the range is infinite, as in every framework
        return array.astype(dtype, copy=False)
