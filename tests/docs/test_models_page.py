"""``docs/reference/models.md`` lists what the code serves, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinyvllm._json_file import MAX_JSON_BYTES
from tinyvllm.models import MODEL_TYPES, config_reader, hf_config, read_config
from tinyvllm.models.harmless_keys import NEUTRAL_VALUES
from tinyvllm.models.rotary import ROPE_TYPES, RopeDefaults, longest_context, read_rotary
from tinyvllm.start import build, generation_config
from tinyvllm.text import tokenizer_files
from tinyvllm_loaders import layout
from tinyvllm_loaders.safetensors import DTYPES

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose head begins with ``heading``."""
    table = PAGE[PAGE.index(f"\n| {heading}") :].strip().split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_family_is_listed_with_its_defaults() -> None:
    listed = {words(row[0])[0]: row[1:5] for row in rows("`model_type`")}
    assert tuple(listed) == MODEL_TYPES
    sizes = {"hidden_size": 640, "num_attention_heads": 64, "num_hidden_layers": 1, "intermediate_size": 1}
    for family, (num_kv_heads, head_dim, positions, eps) in listed.items():
        config = read_config({"model_type": family, **sizes, "vocab_size": 1})
        assert str(config.shape.num_kv_heads) == ("64" if num_kv_heads == "query heads" else num_kv_heads)
        assert str(config.shape.head_dim) == ("10" if head_dim == "derived" else head_dim)
        assert str(config.shape.max_position_embeddings) == positions
        assert str(config.rms_norm_eps) == eps


def test_every_value_that_changes_nothing_is_listed() -> None:
    values = {'"silu"': "silu", '"swish"': "swish", "0": 0, "1": 1}
    listed = {key: tuple(values[word] for word in words(row[1])) for row in rows("key") for key in words(row[0])}
    assert listed == dict(NEUTRAL_VALUES)


def test_every_rope_type_is_listed_with_its_keys_and_its_longest_sequence() -> None:
    listed = {words(row[0])[0]: row[1:] for row in rows("`rope_type`")}
    assert tuple(listed) == ROPE_TYPES
    numbers = {"short_factor": [1.0], "long_factor": [2.0], "truncate": True, "low_freq_factor": 1.0}
    for rope_type, (keys, longest) in listed.items():
        scaling = {key: numbers.get(key, 4.0) for key in words(keys)}
        scaling |= {"original_max_position_embeddings": 32} if "original_max_position_embeddings" in scaling else {}
        rope = {"rope_scaling": {"rope_type": rope_type, **scaling}}
        rotary = read_rotary(config_reader.ConfigReader(rope, "config.json"), 2, 64, RopeDefaults())
        start = 32 if longest.startswith("`original_max_position_embeddings`") else 64
        assert longest_context(rotary, 64) == start * (4 if longest.endswith("times `factor`") else 1)


def test_every_dtype_is_listed() -> None:
    assert [words(row[0])[0] for row in rows("dtype of a tensor")] == list(DTYPES)
    listed = {word: words(row[1])[0] for row in rows("word") for word in words(row[0])}
    assert listed == hf_config._DTYPES


def test_files_and_limits_are_those_of_the_code() -> None:
    listed = {words(row[0])[0]: row[1:] for row in rows("file")}
    tokenizers = {
        "tokenizer.json": tokenizer_files.MAX_TOKENIZER_BYTES,
        "tokenizer_config.json": tokenizer_files.MAX_TOKENIZER_CONFIG_BYTES,
        "chat_template.jinja": tokenizer_files.MAX_TEMPLATE_BYTES,
    }
    assert {layout.INDEX, generation_config.FILE, "config.json", *tokenizers} == set(listed)
    assert {name: listed[name][1] for name in tokenizers} == {n: f"{size >> 20} MiB" for n, size in tokenizers.items()}
    assert {listed[name][1] for name in ("config.json", generation_config.FILE)} == {f"{MAX_JSON_BYTES >> 20} MiB"}
    assert listed[layout.INDEX][1] == f"{layout.MAX_INDEX_BYTES // 10**6} MB"
    assert set(generation_config._FIELDS) == set(words(listed[generation_config.FILE][2]))
    assert f"more than {build._MAX_MODEL_LEN} is refused" in PAGE


@pytest.mark.parametrize("name", [layout.SINGLE, layout.INDEX, "adapter_config.json", *layout._PICKLES[:2]])
def test_every_kind_of_weight_file_is_named(name: str) -> None:
    assert f"`{name}`" in PAGE
