"""Small random checkpoints with weights large enough that attention and positions matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tinyvllm.models import read_config
from tinyvllm.models.model import expected_tensors

VOCAB_SIZE = 61

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
}


def write_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint of the tiny model, weights from ``seed``; the folder."""
    config = {**CONFIG, **changes}
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(read_config(config)).items():
        if name.endswith("norm.weight"):
            tensors[name] = (1 + 0.2 * rng.standard_normal(shape)).astype(np.float32)
        else:
            tensors[name] = (rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
