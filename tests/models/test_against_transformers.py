"""Frequencies and defaults beside those of transformers, which ``tests/golden/make_golden.py`` wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyvllm.models import MODEL_TYPES, read_config
from tinyvllm.models.model import expected_tensors
from tinyvllm.models.rotary import ROPE_TYPES, inverse_frequencies

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "ropes.json").read_text())
DEFAULTS = json.loads((GOLDEN / "defaults.json").read_text())


def config_with(case: dict[str, Any], **changes: Any) -> Any:
    sizes = {"hidden_size": 8 * case["head_dim"], "num_attention_heads": 8, "head_dim": case["head_dim"]}
    sizes |= {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9}
    maximum = {"max_position_embeddings": case["max_position_embeddings"]}
    return read_config({"model_type": "llama", **sizes, **maximum, **changes})


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_the_frequencies_of_every_rope_type_are_those_of_transformers(spelling: str) -> None:
    assert {case["rope_parameters"]["rope_type"] for case in CASES} == set(ROPE_TYPES) - {"default"}
    for case in CASES:
        rope = dict(case["rope_parameters"])
        changes: dict[str, Any] = {"rope_parameters": rope}
        if spelling == "rope_scaling":
            theta = rope.pop("rope_theta")
            changes = {"rope_theta": theta, "rope_scaling": {"type": rope.pop("rope_type"), **rope}}
        rotary = config_with(case, **changes).rotary
        got = inverse_frequencies(rotary, case["head_dim"], case["max_model_len"])
        np.testing.assert_allclose(got, case["frequencies"], rtol=2e-5, err_msg=str(case["rope_parameters"]))
        assert rotary.attention_factor == pytest.approx(case["attention_factor"], rel=1e-9), case["rope_parameters"]


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_an_absent_key_means_what_the_configuration_class_says(family: str) -> None:
    expected = DEFAULTS["families"][family]
    config = read_config({"model_type": family, **DEFAULTS["sizes"]})
    assert config.shape.num_kv_heads == expected["num_kv_heads"]
    assert config.shape.head_dim == expected["head_dim"]
    assert config.shape.max_position_embeddings == expected["max_position_embeddings"]
    assert config.rms_norm_eps == expected["rms_norm_eps"]
    assert config.rotary.theta == expected["rope_theta"]
    assert config.has_tied_embeddings == expected["is_tied"]
    assert list(config.sliding_windows) == expected["windows"]
    tensors = expected_tensors(config)
    layer = "model.layers.0."
    assert sorted(name.removeprefix(layer) for name in tensors if name.startswith(layer)) == expected["layer_tensors"]
