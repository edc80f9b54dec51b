"""Mutated ``config.json`` and ``generation_config.json``: an error that names the key, or what the file says. Nothing
else, quickly, and in little memory.

The long run: ``python -m pytest tests/models/test_config_fuzz.py --num-mutants 10000``.
"""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.tiny import CONFIG
from tests.mutate import Mutant, to_json, tree_mutants
from tinyvllm._json_file import read_json_object
from tinyvllm._shown import shown
from tinyvllm.errors import LoadError
from tinyvllm.models import MODEL_TYPES, read_config
from tinyvllm.models.model import expected_tensors
from tinyvllm.models.rotary import rotary_table
from tinyvllm.request import SamplingParams
from tinyvllm.start.generation_config import generation_defaults

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
SERVED_ROPES = {"phi3": (0, 5), "gemma3_text": (0, 1, 3, 4, 5)}
"""Of families that do not serve all of ``ROPES``, in this spelling."""
FILES = {
    f"{family}-{i}": {**CONFIG, **OTHERS, **rope, "model_type": family}
    for family in MODEL_TYPES
    for i, rope in enumerate(ROPES)
    if i in SERVED_ROPES.get(family, range(len(ROPES)))
}
GENERATION: dict[str, Any] = {
    "_from_model_config": True, "bos_token_id": 1, "do_sample": True, "eos_token_id": [2, 5], "max_new_tokens": 64,
    "min_p": 0.05, "repetition_penalty": 1.1, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
}  # fmt: skip


def test_every_file_is_accepted_as_it_is() -> None:
    for file in FILES.values():
        says_what_the_file_says(file, read_config(file))


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_config_is_read_as_it_says_or_refused_by_name(
    name: str, tmp_path: Path, num_mutants: int, mutant_seed: int
) -> None:
    path = tmp_path / "config.json"
    tracemalloc.start()
    try:
        for mutant in tree_mutants(FILES[name], mutant_seed, max(3, num_mutants // 3)):
            path.write_text(to_json(mutant.value))
            start = time.perf_counter()
            try:
                raw = read_json_object(path)
                config = read_config(raw, "config.json")
                tensors = expected_tensors(config)
                head_dim = config.shape.head_dim
                tables = rotary_table(config.rotary, head_dim, 300, 9) if head_dim < 999 else ()
            except LoadError as error:
                check_message(str(error), changed(FILES[name], mutant.value), mutant)
            else:
                says_what_the_file_says(raw, config)
                assert tensors["model.embed_tokens.weight"] == (config.shape.vocab_size, config.shape.hidden_size)
                assert all(np.isfinite(table).all() for table in tables), mutant
            assert time.perf_counter() - start < MAX_SECONDS, mutant
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


def check_message(message: str, keys: set[str], mutant: Mutant) -> None:
    """It names one of these keys, escaped and cut as a message needs it, and is short, in one line, in ASCII."""
    assert message.isascii(), mutant
    assert message.isprintable(), mutant
    assert len(message) < 500, mutant
    if "is there twice" in message:  # on any level
        return
    assert any(key in message or shown(key) in message for key in keys), (message, str(mutant))


def changed(original: dict[str, Any], mutant: dict[str, Any]) -> set[str]:
    """Outermost keys that only one has, or of which both have different values."""
    texts = [{str(key): to_json(value) for key, value in tree.items()} for tree in (original, mutant)]
    keys = {key for key in texts[0] | texts[1] if texts[0].get(key) != texts[1].get(key)}
    # Numbers of a RoPE are missing where its type became another one; the message says "rope_scaling.factor".
    return keys | ({"rope_scaling", "rope_parameters", "rope_theta"} if any("rope_" in key for key in keys) else set())


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


def test_a_mutated_generation_config_gives_usable_defaults_or_names_its_end_tokens(
    tmp_path: Path, num_mutants: int, mutant_seed: int
) -> None:
    path = tmp_path / "generation_config.json"
    for mutant in tree_mutants(GENERATION, mutant_seed, num_mutants * 10):
        path.write_text(to_json(mutant.value))
        try:
            defaults = generation_defaults({}, read_json_object(path), 7, vocab_size=9)
        except LoadError as error:
            check_message(str(error), {"eos_token_id"}, mutant)  # nothing else forbids a model
            continue
        SamplingParams.from_mapping(defaults.sampling).check_vocabulary(9)
        assert all(type(token_id) is int and 0 <= token_id < 9 for token_id in defaults.eos_token_ids), mutant
        for line in defaults.left_out:
            assert any(key in line for key in changed(GENERATION, mutant.value)), mutant
            assert len(line) < 500, mutant
