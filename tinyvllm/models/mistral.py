"""Mistral (Jiang et al. 2023): Llama with a sliding window in every layer."""

from __future__ import annotations

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import FULL, SLIDING, Defaults, layer_types, num_hidden_layers, sliding_window
from tinyvllm.models.llama_family import LlamaFamily


class Model(LlamaFamily):
    """``sliding_window`` in every layer.

    Raises:
        LoadError: ``layer_types`` asks for another attention in some layers.
    """

    def __init__(self, config: ConfigReader) -> None:
        window = sliding_window(config)
        # transformers ignores layer_types here and other engines obey them: only those that change nothing are taken.
        mixed = set(layer_types(config, (FULL, SLIDING)) or ()) - {FULL if window is None else SLIDING}
        if mixed:
            raise config.unsupported(
                "layer_types",
                mixed.pop(),
                "a Mistral model has the same attention in all layers; see model_type: ministral",
            )
        super().__init__(
            config,
            Defaults(max_position_embeddings=131072, num_kv_heads=8),
            windows=(window,) * num_hidden_layers(config),
        )
