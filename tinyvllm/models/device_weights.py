"""From the names of a Hugging Face checkpoint to buffers on a device: bfloat16, ``[out, in]`` as stored."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from tinyvllm.device import BFLOAT16, Buffer, Gpu
from tinyvllm.interfaces import Checkpoint
from tinyvllm.layers import AttentionProjection, Linear, Norm, RotaryTable
from tinyvllm.models.decoder import DecoderConfig, DecoderLayer, DecoderWeights
from tinyvllm.models.rotary import rotary_table

WEIGHT_SCHEME = "rows"
"""How linear layers lie on a device; see :class:`~tinyvllm.layers.Linear`."""


def unsupported_on_device(config: DecoderConfig) -> list[str]:
    """Reasons why the kernels cannot run this model; empty if they can."""
    s = config.shape
    reasons = []
    if s.head_dim not in (16, 32, 64, 80, 96, 128):
        reasons.append(f"head_dim is {s.head_dim}, the kernels know 16, 32, 64, 80, 96 and 128")
    if s.num_heads // s.num_kv_heads > 8:
        reasons.append(f"{s.num_heads // s.num_kv_heads} query heads share a KV head, the kernels go up to 8")
    if s.hidden_size % 8 or s.intermediate_size % 8:
        reasons.append("hidden_size and intermediate_size must be multiples of 8")
    if config.has_mlp_bias:
        reasons.append("mlp_bias is not implemented")
    return reasons


def load_device_weights(
    config: DecoderConfig, checkpoint: Checkpoint, device: Gpu, max_model_len: int
) -> DecoderWeights:
    """The decoder's weights on a device, rounded to bfloat16; the head is the embedding table where they are tied.

    Args:
        config: of the decoder; ``unsupported_on_device`` has nothing against it.
        checkpoint: opened; holds every expected tensor.
        device: where to.
        max_model_len: positions that the rotary table must cover.
    """
    reader = _Reader(checkpoint, device)
    cos, sin = rotary_table(config.rotary, config.shape.head_dim, max_model_len)
    rotary = RotaryTable(reader.upload(cos), reader.upload(sin))
    embedding = reader.join("model.embed_tokens.weight")
    layers = tuple(_load_layer(config, reader, rotary, i) for i in range(config.shape.num_layers))
    head = embedding if config.has_tied_embeddings else reader.join("lm_head.weight")
    final_norm = Norm(reader.join("model.norm.weight"), config.rms_norm_eps)
    return DecoderWeights(embedding, layers, final_norm, Linear(head, scheme=WEIGHT_SCHEME))


def _load_layer(config: DecoderConfig, reader: _Reader, rotary: RotaryTable, i: int) -> DecoderLayer:
    prefix = f"model.layers.{i}"
    attention, mlp, shape = f"{prefix}.self_attn", f"{prefix}.mlp", config.shape

    def linear(names: Sequence[str], *, has_bias: bool = False) -> Linear:
        weight = reader.join(*(f"{name}_proj.weight" for name in names))
        bias = reader.join(*(f"{name}_proj.bias" for name in names)) if has_bias else None
        return Linear(weight, bias, scheme=WEIGHT_SCHEME)

    def norm(name: str) -> Norm:
        return Norm(reader.join(f"{name}.weight"), config.rms_norm_eps)

    return DecoderLayer(
        input_norm=norm(f"{prefix}.input_layernorm"),
        projection=AttentionProjection(
            qkv=linear([f"{attention}.{each}" for each in "qkv"], has_bias=config.has_qkv_bias),
            rotary=rotary,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            q_norm=norm(f"{attention}.q_norm") if config.has_qk_norm else None,
            k_norm=norm(f"{attention}.k_norm") if config.has_qk_norm else None,
        ),
        output=linear([f"{attention}.o"], has_bias=config.has_output_bias),
        post_attention_norm=norm(f"{prefix}.post_attention_layernorm"),
        gate_up=linear([f"{mlp}.gate", f"{mlp}.up"]),
        down=linear([f"{mlp}.down"]),
        sliding_window=config.sliding_windows[i],
    )


class _Reader:
    """Tensors of a checkpoint as buffers."""

    def __init__(self, checkpoint: Checkpoint, device: Gpu) -> None:
        self._checkpoint = checkpoint
        self._memory = device.memory

    def join(self, *names: str) -> Buffer:
        """Some tensors one below the other, one read at a time."""
        metas = [self._checkpoint.meta(name) for name in names]
        rows = sum(meta.shape[0] for meta in metas)
        whole = self._memory.alloc((rows, *metas[0].shape[1:]), BFLOAT16)
        offset = 0
        for name in names:
            part = self._checkpoint.read(name).astype(ml_dtypes.bfloat16, copy=False)
            self._memory.upload(whole.view(part.shape, offset_bytes=offset), part)
            offset += part.nbytes
        return whole

    def upload(self, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Buffer:
        """A buffer with the contents of ``array``."""
        buffer = self._memory.alloc(array.shape, array.dtype)
        self._memory.upload(buffer, array)
        return buffer
