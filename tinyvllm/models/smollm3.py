"""SmolLM3 (Hugging Face 2025): Llama without RoPE in every fourth layer."""

from __future__ import annotations

from dataclasses import replace

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import (
    FULL,
    SLIDING,
    Defaults,
    layer_types,
    num_hidden_layers,
    optional_window,
    windows_of,
)
from tinyvllm.models.llama_family import Biases, LlamaFamily
from tinyvllm.models.model import AttentionLayer
from tinyvllm.models.rotary import RopeDefaults


class Model(LlamaFamily):
    """Layers with RoPE by ``no_rope_layers``, 1 for each that has it, or by ``no_rope_layer_interval``.

    Where ``use_sliding_window`` is set, windows are in the layers that ``layer_types`` names, or in those without RoPE.
    """

    def __init__(self, config: ConfigReader) -> None:
        self._has_rope = _layers_with_rope(config)
        has_bias = config.flag("attention_bias", False)
        super().__init__(
            config,
            Defaults(
                max_position_embeddings=32768,
                num_kv_heads=4,
                has_tied_embeddings=True,
                rope=RopeDefaults(theta=2000000.0),
            ),
            biases=Biases(qkv=has_bias, output=has_bias, mlp=config.flag("mlp_bias", False)),
            windows=_windows(config, self._has_rope),
        )

    def attention(self, i: int) -> AttentionLayer:
        """Without rotation in the layers that have none."""
        layer = super().attention(i)
        return layer if self._has_rope[i] else replace(layer, rotary=None)


def _layers_with_rope(config: ConfigReader) -> list[bool]:
    num_layers = num_hidden_layers(config)
    listed = config.get("no_rope_layers")
    interval = config.integer("no_rope_layer_interval", 4)
    if listed is None:
        return [(i + 1) % interval != 0 for i in range(num_layers)]
    if not isinstance(listed, list) or len(listed) < num_layers or any(each not in (0, 1) for each in listed):
        raise config.wrong("no_rope_layers", listed, f"a list of 0 and 1, one for each of the {num_layers} layers")
    return [bool(each) for each in listed[:num_layers]]


def _windows(config: ConfigReader, has_rope: list[bool]) -> tuple[int | None, ...]:
    is_used, types = config.flag("use_sliding_window", False), layer_types(config, (FULL, SLIDING))
    config.ignore("sliding_window")  # where it is switched off
    window = optional_window(config) if is_used else None
    if types is None:
        return tuple(None if has else window for has in has_rope)
    return windows_of(config, types, window, "set use_sliding_window and sliding_window")
