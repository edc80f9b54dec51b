"""From the names of a Hugging Face checkpoint to buffers on a device: bfloat16, ``[out, in]`` as stored."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tinyvllm.devices.interface import Buffer, Device
from tinyvllm.interfaces import Checkpoint
from tinyvllm.kernels.launch import BFLOAT16
from tinyvllm.models.decoder import DecoderConfig
from tinyvllm.models.rotary import rotary_table


@dataclass(frozen=True, slots=True)
class DeviceLayer:
    """One layer: norms ``[E]``, matrices ``[out, in]``, biases ``[out]`` or None."""

    input_norm: Buffer
    qkv: Buffer
    qkv_bias: Buffer | None
    query_norm: Buffer | None
    key_norm: Buffer | None
    output: Buffer
    output_bias: Buffer | None
    post_attention_norm: Buffer
    gate_up: Buffer
    down: Buffer
    sliding_window: int | None


@dataclass(frozen=True, slots=True)
class DeviceWeights:
    """All of it; ``head`` is ``embedding`` where they are tied."""

    embedding: Buffer
    layers: tuple[DeviceLayer, ...]
    final_norm: Buffer
    head: Buffer
    cos: Buffer
    sin: Buffer


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
    config: DecoderConfig, checkpoint: Checkpoint, device: Device, max_model_len: int
) -> DeviceWeights:
    """The decoder's weights on a device, rounded to bfloat16.

    Args:
        config: of the decoder; ``unsupported_on_device`` has nothing against it.
        checkpoint: opened; holds every expected tensor.
        device: where to.
        max_model_len: positions that the rotary table must cover.
    """
    reader = _Reader(checkpoint, device)
    cos, sin = rotary_table(config.rotary, config.shape.head_dim, max_model_len)
    embedding = reader.join("model.embed_tokens.weight")
    layers = tuple(_load_layer(config, reader, i) for i in range(config.shape.num_layers))
    head = embedding if config.has_tied_embeddings else reader.join("lm_head.weight")
    return DeviceWeights(
        embedding, layers, reader.join("model.norm.weight"), head, reader.upload(cos), reader.upload(sin)
    )


def _load_layer(config: DecoderConfig, reader: _Reader, i: int) -> DeviceLayer:
    prefix = f"model.layers.{i}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    has_norms = config.has_qk_norm
    return DeviceLayer(
        input_norm=reader.join(f"{prefix}.input_layernorm.weight"),
        qkv=reader.join(*(f"{attention}.{each}_proj.weight" for each in "qkv")),
        qkv_bias=reader.join(*(f"{attention}.{each}_proj.bias" for each in "qkv")) if config.has_qkv_bias else None,
        query_norm=reader.join(f"{attention}.q_norm.weight") if has_norms else None,
        key_norm=reader.join(f"{attention}.k_norm.weight") if has_norms else None,
        output=reader.join(f"{attention}.o_proj.weight"),
        output_bias=reader.join(f"{attention}.o_proj.bias") if config.has_output_bias else None,
        post_attention_norm=reader.join(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=reader.join(f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"),
        down=reader.join(f"{mlp}.down_proj.weight"),
        sliding_window=config.sliding_windows[i],
    )


class _Reader:
    """Tensors of a checkpoint as buffers."""

    def __init__(self, checkpoint: Checkpoint, device: Device) -> None:
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
