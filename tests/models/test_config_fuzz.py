"""Mutated ``config.json`` and ``generation_config.json``: an error that names the key, or what the file says. Nothing
else, quickly, and in little memory.
"""

from __future__ import annotations

import copy
import json
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.tiny import CONFIG
from tinyvllm.engine.generation_config import generation_defaults
from tinyvllm.errors import LoadError
from tinyvllm.json_file import read_json_object
from tinyvllm.models import MODEL_TYPES, read_config
from tinyvllm.models.rotary import rotary_table
from tinyvllm.models.weights import expected_tensors
from tinyvllm.request import SamplingParams

NUM_MUTANTS = 60  # of each file below
MAX_SECONDS = 2
MAX_BYTES = 10**9

ROPES: list[dict[str, Any]] = [
    {"rope_theta": 1e6, "rope_scaling": None},
    {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 6.0, "rope_theta": 5e7}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 64}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0,
                      "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1, "truncate": False}},
    {"original_max_position_embeddings": 64, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0, 1.5] * 4, "long_factor": [2.0, 9.5] * 4}},
]  # fmt: skip
OTHERS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
    "hidden_act": "silu",
    "layer_types": None,
    "max_window_layers": 1,
    "mlp_bias": False,
    "quantization_config": None,
    "sliding_window": 32,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
    "use_sliding_window": False,
}
FILES = {
    f"{family}-{i}": {**CONFIG, **OTHERS, **rope, "model_type": family}
    for i, (family, rope) in enumerate((family, rope) for family in MODEL_TYPES for rope in ROPES)
}
GENERATION: dict[str, Any] = {
    "_from_model_config": True, "bos_token_id": 1, "do_sample": True, "eos_token_id": [2, 5], "max_new_tokens": 64,
    "min_p": 0.05, "repetition_penalty": 1.1, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
}  # fmt: skip
VALUES: list[Any] = [
    None, 0, 0.0, -0.0, -1, 1, 2, 3, 7, 0.5, 1.0, 1.5, 50.0, 1e-300, 1e308, 2**31 - 1, 2**31, 2**63, 2**64, 10**18,
    10**400, float("nan"), float("inf"), float("-inf"), True, False, "", "x", "0", "auto", "linear", "yarn", "longrope",
    "dynamic", "default", "llama", "qwen3", "x" * 5000, "a\x1b[31mb\x00c\u202e", "\ud800", [], [0], [None], ["x"], [[]],
    [1.0] * 8, ["full_attention", "sliding_attention"], {}, {"x": {"y": [1]}}, {"type": "linear"},
    {"rope_type": "yarn", "factor": 2},
]  # fmt: skip


def mutate(tree: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """A copy with one place changed, and the outermost key of that place."""
    mutant = copy.deepcopy(tree)
    key = rng.choice(sorted(mutant))
    parent: Any = mutant
    place: Any = key
    while isinstance(parent[place], (dict, list)) and parent[place] and rng.random() < 0.7:
        parent = parent[place]
        place = rng.choice(sorted(parent) if isinstance(parent, dict) else range(len(parent)))
    match rng.choice(["drop", "rename", "value", "value", "value", "value", "nest"]):
        case "drop":
            del parent[place]
        case "rename" if isinstance(parent, dict):
            parent[rng.choice([f"{place}x", place[:-1], place.upper(), "\ud800\x1b", "k" * 999])] = parent.pop(place)
        case "nest":
            deep: Any = parent[place]
            for _ in range(100):
                deep = {"a": deep} if rng.random() < 0.5 else [deep]
            parent[place] = deep
        case _:
            parent[place] = copy.deepcopy(rng.choice(VALUES))
    return mutant, key


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_config_is_read_as_it_says_or_refused_by_name(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    path = tmp_path / "config.json"
    tracemalloc.start()
    try:
        for i in range(NUM_MUTANTS):
            mutant, key = mutate(FILES[name], rng)
            path.write_text(json.dumps(mutant))
            start = time.perf_counter()
            try:
                raw = read_json_object(path)
                config = read_config(raw, "config.json")
                tensors = expected_tensors(config)
                head_dim = config.shape.head_dim
                tables = rotary_table(config.rotary, head_dim, 300, 9) if head_dim < 999 else ()
            except LoadError as error:
                check_message(str(error), key)
            else:
                says_what_the_file_says(raw, config)
                assert tensors["model.embed_tokens.weight"] == (config.shape.vocab_size, config.shape.hidden_size)
                assert all(np.isfinite(table).all() for table in tables), f"mutant {i}: {key}"
            assert time.perf_counter() - start < MAX_SECONDS, f"mutant {i}: {key}"
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


def check_message(message: str, key: str) -> None:
    assert message.isascii(), message
    assert message.isprintable(), message
    assert len(message) < 500, message
    # A type of RoPE without its numbers is refused for the numbers; a text that is no head size, for the heads.
    assert key in message or (key.startswith("rope_") and "rope_" in message), (key, message)


def says_what_the_file_says(raw: dict[str, Any], config: Any) -> None:
    """Every size and switch of an accepted file that is there and not null is that of the decoder."""
    names = {
        "num_hidden_layers": "num_layers", "hidden_size": "hidden_size", "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads", "head_dim": "head_dim", "intermediate_size": "intermediate_size",
        "vocab_size": "vocab_size",
    }  # fmt: skip
    for theirs, ours in names.items():
        if raw.get(theirs) is not None:
            assert getattr(config.shape, ours) == raw[theirs]
            assert type(raw[theirs]) is int
    assert config.has_tied_embeddings is bool(raw.get("tie_word_embeddings"))
    assert len(config.sliding_windows) == config.shape.num_layers
    if raw.get("rms_norm_eps") is not None:
        assert config.rms_norm_eps == raw["rms_norm_eps"]
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    assert config.rotary.rope_type == rope.get("rope_type", rope.get("type", "default"))
    if config.rotary.rope_type != "default" and rope.get("factor") is not None:
        assert config.rotary.factor == rope["factor"]


def test_a_mutated_generation_config_gives_usable_defaults_or_names_its_end_tokens(tmp_path: Path) -> None:
    rng = random.Random("generation")
    path = tmp_path / "generation_config.json"
    for i in range(NUM_MUTANTS * 5):
        mutant, key = mutate(GENERATION, rng)
        path.write_text(json.dumps(mutant))
        try:
            defaults = generation_defaults({}, read_json_object(path), 7, vocab_size=9)
        except LoadError as error:
            assert key == "eos_token_id", f"mutant {i}: {key}"
            check_message(str(error), key)
            continue
        SamplingParams.from_mapping(defaults.sampling).check_vocabulary(9)
        assert all(type(token_id) is int and 0 <= token_id < 9 for token_id in defaults.eos_token_ids)
        for line in defaults.left_out:
            assert key in line
            assert len(line) < 500
