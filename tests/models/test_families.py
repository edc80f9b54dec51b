"""Which models are served, which are refused by name, and that absent, null and zero are three things."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.test_read_config import read
from tinyvllm.errors import LoadError
from tinyvllm.models import MODEL_TYPES
from tinyvllm.models.model import expected_tensors

FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    "model_type",
    ["llava", "mixtral", "qwen2_moe", "qwen2_vl", "qwen3_next", "mistral3", "llama4", "internlm2", "internlm", "qwen",
     "ministral3", "vipllava", "internvl"],
)  # fmt: skip
def test_another_architecture_is_named_as_not_served_and_never_taken_for_a_slip(model_type: str) -> None:
    with pytest.raises(
        LoadError, match=f"model_type '{model_type}' is another architecture.* served are llama"
    ) as caught:
        read(model_type=model_type)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"), [("lama", "llama"), ("Mistral", "mistral"), ("seed-oss", "seed_oss"), ("mistrl", "mistral")]
)
def test_a_misspelt_model_type_names_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(LoadError, match=f"'{written}' is not supported; did you mean '{meant}'"):
        read(model_type=written)


@pytest.mark.parametrize("model_type", ["absent", None])
def test_a_missing_model_type_names_those_that_are_served(model_type: Any) -> None:
    with pytest.raises(LoadError, match=f"model_type is missing; served are {', '.join(MODEL_TYPES)}"):
        read(model_type=model_type)


@pytest.mark.parametrize(
    "name",
    ["BertModel", "LlavaForConditionalGeneration", "LlamaForSequenceClassification", "LlamaModel", "Strange",
     "Qwen2ForRewardModel", "LlamaForCausalLMEagle3"],
)  # fmt: skip
def test_architectures_that_are_no_language_model_are_refused_by_name(name: str) -> None:
    with pytest.raises(LoadError, match=rf"architectures names '{name}', which is no model that generates text"):
        read(architectures=[name])


@pytest.mark.parametrize(
    "names", ["absent", None, [], ["LlamaForCausalLM"], ["LLaMAForCausalLM"], ["LlamaModel", "LlamaForCausalLM"]]
)
def test_architectures_may_be_absent_or_name_a_language_model(names: Any) -> None:
    assert read(architectures=names).shape.num_heads == 4


@pytest.mark.parametrize("names", ["LlamaForCausalLM", [5], {"a": 1}, 0])
def test_architectures_that_are_no_list_of_names_are_refused(names: Any) -> None:
    with pytest.raises(LoadError, match="architectures must be a list of class names"):
        read(architectures=names)


# ---------------------------------------------------------------- absent, null, zero


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize(
    "key", ["num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta"]
)
def test_zero_is_never_taken_for_absent(family: str, key: str) -> None:
    with pytest.raises(LoadError, match=f"{key} must be a .*got 0"):
        read(model_type=family, **{key: 0})


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_null_means_something_only_where_the_configuration_class_gives_it_a_meaning(family: str) -> None:
    assert read(model_type=family, num_key_value_heads=None).shape.num_kv_heads == 4
    for key in ("max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_size", "num_hidden_layers"):
        with pytest.raises(LoadError, match=f"{key} must be a .*got null"):
            read(model_type=family, **{key: None})
    if family in ("qwen3", "gemma3_text"):
        with pytest.raises(LoadError, match=r"head_dim must be a whole number, got null; leave it out for (128|256)"):
            read(model_type=family, head_dim=None)
    else:
        assert read(model_type=family, head_dim=None).shape.head_dim == 12


def test_a_window_of_null_is_none_and_one_of_zero_is_an_error() -> None:
    qwen = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}
    for family in ({"model_type": "mistral"}, {"model_type": "ministral"}, qwen):
        assert read(**family, sliding_window="absent").sliding_windows == (4096, 4096)
        assert read(**family, sliding_window=None).sliding_windows == (None, None)
        with pytest.raises(LoadError, match="sliding_window must be a whole number of at least 1, got 0"):
            read(**family, sliding_window=0)
    assert read(**{**qwen, "use_sliding_window": False}, sliding_window=0).sliding_windows == (None, None)
    assert read(**{**qwen, "max_window_layers": "absent"}).sliding_windows == (None, None)
    with pytest.raises(LoadError, match="max_window_layers must be a whole number, got null; leave it out for 28"):
        read(**{**qwen, "max_window_layers": None})


def test_ministral_has_windows_in_the_layers_that_layer_types_names() -> None:
    window = {"model_type": "ministral", "sliding_window": 9}
    assert read(**window, layer_types=[FULL, SLIDING]).sliding_windows == (None, 9)
    assert read(**window).sliding_windows == (9, 9)
    with pytest.raises(LoadError, match=r"layer_types = 'sliding_attention' is not supported; there is no window"):
        read(**{**window, "sliding_window": None}, layer_types=[FULL, SLIDING])
    with pytest.raises(LoadError, match="layer_types has 3 entries, expected one for each of the 2 layers"):
        read(**window, layer_types=[FULL] * 3)


def test_layer_types_that_other_engines_would_obey_are_refused_where_ours_would_not() -> None:
    assert read(model_type="mistral", sliding_window=9, layer_types=[SLIDING] * 2).sliding_windows == (9, 9)
    with pytest.raises(LoadError, match=r"layer_types = 'full_attention' is not supported; .* model_type: ministral"):
        read(model_type="mistral", sliding_window=9, layer_types=[SLIDING, FULL])
    for family in ("llama", "seed_oss", "internlm3", "iquestcoder"):
        assert read(model_type=family, layer_types=[FULL] * 2).sliding_windows == (None, None)
        with pytest.raises(LoadError, match=r"layer_types = 'sliding_attention' is not supported"):
            read(model_type=family, layer_types=[SLIDING, FULL])


def biases(**changes: Any) -> set[str]:
    names = expected_tensors(read(**changes))
    return {name.split(".")[-2] for name in names if name.endswith(".bias")}


def test_biases_are_those_of_each_family() -> None:
    qkv, out, mlp = {"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert biases(model_type="seed_oss") == qkv
    assert biases(model_type="seed_oss", attention_bias=False, attention_out_bias=True, mlp_bias=True) == out | mlp
    assert biases(model_type="internlm3", qkv_bias=True, bias=True) == qkv | out | mlp
    assert biases(model_type="internlm3", attention_bias=True, mlp_bias=True) == qkv | out | mlp
    assert biases(model_type="internlm3") == set()
    assert biases(model_type="iquestcoder", attention_bias=True) == qkv | out
    assert biases(model_type="qwen2") == qkv
    with pytest.raises(LoadError, match="qkv_bias = true and mlp_bias = false differ"):
        read(model_type="internlm3", qkv_bias=True)
    with pytest.raises(LoadError, match="attention_bias must be true or false, got null; leave it out for true"):
        read(model_type="seed_oss", attention_bias=None)


@pytest.mark.parametrize(
    ("family", "key"),
    [("mistral", "attention_bias"), ("mistral", "mlp_bias"), ("ministral", "attention_bias"), ("llama", "qkv_bias"),
     ("qwen3", "mlp_bias"), ("iquestcoder", "use_sliding_window"), ("iquestcoder", "clip_qkv")],
)  # fmt: skip
def test_a_switch_that_the_family_does_not_have_must_be_off(family: str, key: str) -> None:
    assert read(model_type=family, **{key: None}).shape.num_heads == 4
    with pytest.raises(LoadError, match=f"{key} = .* is not supported"):
        read(model_type=family, **{key: True})


# ---------------------------------------------------------------- numbers and messages


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 200_000_000),
        ("num_hidden_layers", 2**31 - 1),
        ("hidden_size", 10**400),
        ("vocab_size", 2**32),
        ("num_attention_heads", 2**40),
        ("head_dim", 2**31),
        ("max_position_embeddings", 2**31),
        ("rope_theta", 10**400),
        ("rope_theta", 1e308),
        ("rope_theta", float("inf")),
        ("rms_norm_eps", 10**400),
        ("sliding_window", 2**40),
    ],
)
def test_every_number_is_bounded_where_it_is_read(key: str, value: Any) -> None:
    with pytest.raises(LoadError, match=f"config.json: {key} must be") as caught:
        read(model_type="mistral", **{key: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value", ["x" * 500_000, ["y"] * 500_000, {"z": "z" * 500_000}, "\x1b[31mred\ud800\x07", 10**4000]
)
@pytest.mark.parametrize(
    "key",
    ["model_type", "hidden_size", "rope_scaling", "rope_theta", "torch_dtype", "layer_types", "hidden_act",
     "architectures", "tie_word_embeddings", "quantization_config"],
)  # fmt: skip
def test_messages_show_a_value_escaped_and_short(key: str, value: Any) -> None:
    with pytest.raises(LoadError, match=key) as caught:
        read(**{key: value})
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 400


def test_a_message_says_torch_dtype_where_the_file_does() -> None:
    with pytest.raises(LoadError, match=r"config.json: torch_dtype = 'int8' is not supported"):
        read(torch_dtype="int8")
    with pytest.raises(LoadError, match=r"config.json: dtype = 'int8' is not supported"):
        read(dtype="int8", torch_dtype="float32")
    assert read(torch_dtype="torch.bfloat16").dtype == "bfloat16"
    assert read(dtype=None, torch_dtype="half").dtype == "float16"
    assert [read(dtype=word).dtype for word in ("float64", "double", "float", "auto", None)] == ["float32"] * 5


# ---------------------------------------------------------------- RoPE


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "linear"}, "rope_scaling.factor is missing"),
        ({"type": "linear", "factor": None}, "rope_scaling.factor must be a positive number, got null"),
        ({"type": "linear", "factor": 0}, "rope_scaling.factor must be a positive number, got 0"),
        ({"type": "linear", "factor": 1e9}, r"rope_scaling.factor must be a number from 1e-06 to 1e\+06"),
        ({"type": "yarn"}, "rope_scaling.factor is missing"),
        ({"type": "yarn", "factor": 2.0, "truncate": 1}, "rope_scaling.truncate must be true or false"),
        ({"type": "yarn", "factor": 2.0, "beta_fast": -1}, "rope_scaling.beta_fast must be a positive number"),
        ({"type": "yarn", "factor": 2, "original_max_position_embeddings": 0}, "original_max_position_embeddings must"),
        ({"type": "longrope"}, "rope_scaling.short_factor must be a list of 8 positive numbers, got null"),
        (
            {"type": "longrope", "short_factor": [1.0] * 7},
            "a list of 8 positive numbers, half of head_dim, got a list of 7",
        ),
        ({"type": "longrope", "short_factor": [1.0] * 7 + ["x"]}, "short_factor must be a list of 8 .*got 'x'"),
        ({"type": "longrope", "long_mscale": 1.2}, "rope_scaling.long_mscale = 1.2 is not supported"),
        (
            {"type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 4},
            "high_freq_factor must be above",
        ),
        ({"full_attention": {"rope_type": "linear"}}, "another RoPE in some of its layers"),
        (
            {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
            "partial_rotary_factor = 0.5 is not supported",
        ),
    ],
)
def test_a_number_of_rope_that_is_missing_or_wrong_is_named(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        read(rope_scaling=scaling)


def test_a_key_of_rope_that_nobody_knows_is_refused_by_name() -> None:
    known = {"type": "yarn", "factor": 4.0, "finetuned": True, "extrapolation_factor": 1, "attn_factor": 1.0}
    assert read(rope_scaling=known).rotary.factor == 4.0
    for key, value in (("factr", 2.0), ("attn_factor", 2.0), ("llama_4_scaling_beta", 0.1)):
        with pytest.raises(LoadError, match=rf"rope_scaling\.'{key}' = {value} is not supported"):
            read(rope_scaling={**known, key: value})
    with pytest.raises(LoadError, match="rope_scaling has a factor and no rope_type"):
        read(rope_scaling={"factor": 4.0})


def test_an_empty_scaling_gives_way_to_the_other_spelling() -> None:
    parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0}
    assert read(rope_scaling={}, rope_parameters=parameters).rotary.factor == 2.0
    assert read(rope_scaling={}, rope_parameters=parameters).rotary.theta == 77.0
    assert read(rope_scaling={"type": "linear", "factor": 3.0}, rope_parameters=parameters).rotary.factor == 3.0


def test_the_original_length_may_stand_beside_the_scaling() -> None:
    scaling = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    assert read(rope_scaling=scaling).rotary.original_max_position_embeddings == 64
    beside = read(rope_scaling=scaling, original_max_position_embeddings=32).rotary
    assert beside.original_max_position_embeddings == 32
    assert read(rope_scaling={"type": "yarn", "factor": 2.0}).rotary.original_max_position_embeddings == 256
