"""Ministral (Mistral AI 2024): Mistral with a sliding window in the layers that ``layer_types`` names."""

from __future__ import annotations

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import (
    FULL,
    SLIDING,
    Defaults,
    layer_types,
    num_hidden_layers,
    sliding_window,
    windows_of,
)
from tinyvllm.models.llama_family import LlamaFamily


class Model(LlamaFamily):
    """``sliding_window`` in some layers; without ``layer_types`` in every one."""

    def __init__(self, config: ConfigReader) -> None:
        window = sliding_window(config)
        types = layer_types(config, (FULL, SLIDING))
        if types is None:
            windows: tuple[int | None, ...] = (window,) * num_hidden_layers(config)
        else:
            windows = windows_of(config, types, window, "set sliding_window")
        super().__init__(config, Defaults(max_position_embeddings=131072, num_kv_heads=8), windows=windows)
