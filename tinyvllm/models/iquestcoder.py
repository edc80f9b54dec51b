"""IQuest-Coder (IQuest Research 2026): Llama with other defaults."""

from __future__ import annotations

from tinyvllm.models import llama
from tinyvllm.models.hf_config import Defaults


class Model(llama.Model):
    """Biases by ``attention_bias`` and ``mlp_bias``."""

    defaults = Defaults(max_position_embeddings=131072, num_kv_heads=8, head_dim=128, rms_norm_eps=1e-5)
