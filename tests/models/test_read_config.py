from __future__ import annotations

from typing import Any

import pytest

from tests.engine.tiny import CONFIG
from tinyvllm.errors import LoadError
from tinyvllm.models import read_config
from tinyvllm.models.model import expected_tensors


def read(**changes: Any) -> Any:
    config = {**CONFIG, **changes}
    return read_config({key: value for key, value in config.items() if value != "absent"})


def test_an_unknown_model_type_names_the_nearest_and_all() -> None:
    with pytest.raises(LoadError, match=r"model_type 'lama' is not supported; did you mean 'llama'.*llama, mistral"):
        read(model_type="lama")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"bits": 4}),
        ("hidden_act", "gelu"),
        ("partial_rotary_factor", 0.5),
        ("num_local_experts", 8),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("logits_scaling", 8.0),
        ("dtype", "int4"),
        ("torch_dtype", "float8_e4m3fn"),
        ("head_dim", 15),
    ],
)
def test_a_value_that_would_change_the_result_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(LoadError, match=f"config.json: {key} = .* is not supported"):
        read(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"bits": 4}),
        ("attention_multiplier", 0.1),
        ("no_rope_layers", [0, 1]),
        ("hidden_act", "gelu"),
        ("partial_rotary_factor", 0.5),
    ],
)
def test_no_refusal_advises_to_leave_out_what_the_weights_were_trained_with(key: str, value: Any) -> None:
    with pytest.raises(LoadError, match="not served") as caught:
        read(**{key: value})
    assert "leave it out" not in str(caught.value)


@pytest.mark.parametrize("rope_type", ["su", "mrope", "proportional", None, 5, ["linear"]])
@pytest.mark.parametrize("spelling", ["new", "old", "oldest"])
def test_rope_types_that_are_not_implemented_are_refused_by_name(rope_type: Any, spelling: str) -> None:
    key = {"new": "rope_parameters", "old": "rope_scaling", "oldest": "rope_scaling"}[spelling]
    inner = {"type" if spelling == "oldest" else "rope_type": rope_type, "factor": 2.0}
    with pytest.raises(LoadError, match=rf"{key}.rope_type = .* is not supported.*default, linear, dynamic, llama3"):
        read(**{key: inner})


def test_both_spellings_of_rope_read_the_same() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = read(rope_theta=5e5, rope_scaling=scaling)
    new = read(rope_theta="absent", rope_parameters={**scaling, "rope_theta": 5e5})
    assert old.rotary == new.rotary
    assert old.rotary.factor == 8.0


def test_a_number_that_llama3_needs_is_asked_for() -> None:
    with pytest.raises(LoadError, match="low_freq_factor is missing"):
        read(rope_scaling={"rope_type": "llama3", "factor": 8.0})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "absent", "hidden_size is missing"),
        ("hidden_size", "48", "hidden_size must be a whole number"),
        ("hidden_size", True, "hidden_size must be a whole number"),
        ("vocab_size", 0, "at least 1, got 0"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps must be a positive number"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings must be true or false"),
        ("num_key_value_heads", 3, "num_attention_heads = 4 is not a multiple of num_key_value_heads = 3"),
        ("rope_scaling", [1], "rope_scaling must be a mapping"),
    ],
)
def test_what_is_missing_or_mistyped_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        read(**{key: value})


def test_defaults_are_those_of_the_configuration_classes() -> None:
    bare = {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 16, "intermediate_size": 8}
    bare |= {"num_hidden_layers": 1, "vocab_size": 9}
    assert read_config(bare).shape.num_kv_heads == 8
    assert read_config(bare).sliding_windows == (4096,)
    assert read_config({**bare, "sliding_window": None}).sliding_windows == (None,)
    assert read_config({**bare, "num_key_value_heads": None}).shape.num_kv_heads == 16
    assert read_config({**bare, "model_type": "llama"}).shape.num_kv_heads == 16
    assert read_config({**bare, "model_type": "qwen3", "num_attention_heads": 32}).shape.head_dim == 128


def test_qwen_windows_follow_layer_types_or_max_window_layers() -> None:
    common = {"model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 7}
    assert read(**common, max_window_layers=2).sliding_windows == (None, None, 7, 7)
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert read(**common, layer_types=types).sliding_windows == (7, None, None, 7)
    assert read(**{**common, "use_sliding_window": False}).sliding_windows == (None,) * 4
    with pytest.raises(LoadError, match=r"layer_types = .* is not supported"):
        read(**common, layer_types=["linear_attention"] * 4)


def test_expected_tensors_follow_the_biases_and_norms() -> None:
    plain = set(expected_tensors(read()))
    assert "lm_head.weight" in plain
    assert "lm_head.weight" not in expected_tensors(read(tie_word_embeddings=True))
    qwen2 = set(expected_tensors(read(model_type="qwen2")))
    assert {n.split("self_attn.")[1] for n in qwen2 - plain} == {"q_proj.bias", "k_proj.bias", "v_proj.bias"}
    qwen3 = set(expected_tensors(read(model_type="qwen3")))
    assert {n.split("self_attn.")[1] for n in qwen3 - plain} == {"q_norm.weight", "k_norm.weight"}
    biased = set(expected_tensors(read(attention_bias=True, mlp_bias=True)))
    assert len(biased - plain) == 7 * CONFIG["num_hidden_layers"]
