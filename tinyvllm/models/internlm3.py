"""InternLM3 (Shanghai AI Laboratory 2025): Llama, with names of its own for the biases."""

from __future__ import annotations

from tinyvllm.errors import LoadError
from tinyvllm.models.config_reader import ConfigReader, as_json
from tinyvllm.models.hf_config import Defaults, no_windows
from tinyvllm.models.llama_family import Biases, LlamaFamily


class Model(LlamaFamily):
    """Biases by ``qkv_bias`` and ``bias``, or Llama's names for them; all layers have one or none has.

    Raises:
        LoadError: the two differ.
    """

    def __init__(self, config: ConfigReader) -> None:
        no_windows(config)
        names = (("qkv_bias", "attention_bias"), ("bias", "mlp_bias"))
        qkv, mlp = (own if config.has(own) else llamas for own, llamas in names)
        has_bias, has_mlp_bias = config.flag(qkv, False), config.flag(mlp, False)
        if has_bias != has_mlp_bias:
            raise LoadError(
                f"{config.where}: {qkv} = {as_json(has_bias)} and {mlp} = {as_json(has_mlp_bias)} differ; "
                "only models in which all layers have biases or none has are served"
            )
        super().__init__(
            config,
            Defaults(max_position_embeddings=32768, num_kv_heads=2, head_dim=128, rms_norm_eps=1e-5),
            biases=Biases(qkv=has_bias, output=has_bias, mlp=has_bias),
        )
