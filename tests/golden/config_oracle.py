"""What transformers makes of ``config.json`` files: defaults of each family, and frequencies of each RoPE.

Development only: needs torch and transformers. ``make_golden.py`` writes both files with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

hf: Any = transformers

DEFAULTS = Path(__file__).parent / "defaults.json"
ROPES = Path(__file__).parent / "ropes.json"

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "ministral", "seed_oss", "internlm3", "iquestcoder", "phi3", "granite",
    "olmo2", "smollm3", "gemma3_text",
)  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 4096, "num_attention_heads": 64, "num_hidden_layers": 40, "intermediate_size": 128, "vocab_size": 99,
}  # fmt: skip


def write_defaults() -> None:
    """For each family, the values that its configuration class takes for a file with ``SIZES`` alone."""
    defaults = {}
    for family in FAMILIES:
        config = hf.AutoConfig.for_model(family, **SIZES, pad_token_id=None)
        rope = config.rope_parameters
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        types = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        config.head_dim = head_dim  # transformers itself needs it said for Ministral
        model = meta_model(config)
        names = {name.removeprefix("model.layers.0.") for name, _ in model.named_parameters() if ".layers.0." in name}
        defaults[family] = {
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": head_dim,
            "max_position_embeddings": config.max_position_embeddings,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": rope.get("full_attention", rope)["rope_theta"],
            "is_tied": bool(config.tie_word_embeddings),
            "windows": [
                window if types is None or kind == "sliding_attention" else None for kind in types or [""] * 40
            ],
            "layer_tensors": sorted(names),
        }
    write(DEFAULTS, {"sizes": SIZES, "families": defaults})


def meta_model(config: Any) -> Any:
    """The model without memory for its weights."""
    config.num_hidden_layers, config.layer_types = 1, (getattr(config, "layer_types", None) or [None])[:1]
    if config.layer_types == [None]:
        del config.layer_types
    with torch.device("meta"):
        return hf.AutoModelForCausalLM.from_config(config)


def write_ropes() -> None:
    """Random RoPEs of each type: the mapping, and frequencies and attention factor as transformers has them."""
    rng = np.random.default_rng(7)
    cases = []
    for kind in ROPE_INIT_FUNCTIONS.keys() & {"linear", "dynamic", "yarn", "longrope", "llama3"}:
        for _ in range(12):
            cases.append(one_rope(kind, rng))
    write(ROPES, sorted(cases, key=lambda case: case["rope_parameters"]["rope_type"]))


def one_rope(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    head_dim, maximum = int(rng.choice([16, 64, 80, 96, 128])), int(rng.choice([64, 4096, 32768, 131072]))
    original = int(rng.choice([32, 2048, 4096]))
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": float(np.round(10 ** rng.uniform(2.5, 7), 1))}
    length = int(rng.choice([8, original, original + 1, 4 * maximum]))
    if kind != "longrope" or rng.random() < 0.5:
        rope["factor"] = float(np.round(rng.uniform(1, 40), 3))
    if kind == "llama3":
        rope |= {"low_freq_factor": float(rng.choice([0.5, 1])), "high_freq_factor": float(rng.choice([2, 4]))}
    if kind in ("llama3", "yarn", "longrope") and rng.random() < 0.7:
        rope["original_max_position_embeddings"] = original
    if kind == "yarn":
        choices: dict[str, Any] = {
            "attention_factor": [None, 1.3], "beta_fast": [None, 0, 8.0, 64], "beta_slow": [None, 0, 2.5],
            "mscale": [None, 0, 1.0, 0.707], "mscale_all_dim": [None, 0, 1.0, 0.5], "truncate": [True, False, None],
        }  # fmt: skip
        drawn = {key: values[int(rng.integers(len(values)))] for key, values in choices.items() if rng.random() < 0.6}
        rope |= drawn
        if rng.random() < 0.2:
            rope["factor"] = None
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            rope[name] = np.round(rng.uniform(1, 30, head_dim // 2), 3).tolist()
        if rng.random() < 0.3:
            rope["attention_factor"] = 1.19
    sizes = {"hidden_size": 8 * head_dim, "num_attention_heads": 8, "head_dim": head_dim}
    config = hf.LlamaConfig(**sizes, max_position_embeddings=maximum, rope_parameters=dict(rope))
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return {
        "rope_parameters": rope,
        "head_dim": head_dim,
        "max_position_embeddings": maximum,
        "max_model_len": length,
        "frequencies": [float(f"{value:.7g}") for value in frequencies.double().tolist()],
        "attention_factor": float(attention_factor),
    }


def write(path: Path, value: Any) -> None:
    path.write_text(
        json.dumps(value, separators=(",", ":"), sort_keys=True).replace('{"attention', '\n{"attention') + "\n"
    )
