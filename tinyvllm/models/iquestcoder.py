"""IQuest-Coder (IQuest Research 2026): Llama with other defaults."""

from __future__ import annotations

from tinyvllm.models.config_reader import ConfigReader
from tinyvllm.models.hf_config import Defaults, no_windows
from tinyvllm.models.llama_family import Biases, LlamaFamily


class Model(LlamaFamily):
    """Biases by ``attention_bias`` and ``mlp_bias``."""

    def __init__(self, config: ConfigReader) -> None:
        no_windows(config)
        has_bias = config.flag("attention_bias", False)
        super().__init__(
            config,
            Defaults(max_position_embeddings=131072, num_kv_heads=8, head_dim=128, rms_norm_eps=1e-5),
            biases=Biases(qkv=has_bias, output=has_bias, mlp=config.flag("mlp_bias", False)),
        )
