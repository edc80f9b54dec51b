"""Values, their origins, overrides and paths."""

from pathlib import Path

import numpy as np
import pytest

from tinyvllm.config import Setting, config_from_mapping, load_config
from tinyvllm.config.schema import Config, json_schema
from tinyvllm.config.show import show
from tinyvllm.errors import ConfigError

TEXT = """\
model: demo
scheduler:
  name: static
  max_num_seqs: 4
run:
  prompts: [a]
  sampling: {temperature: 1e-1, logit_bias: {13: -100}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(TEXT)
    return path


def test_every_value_says_where_it_came_from(file: Path) -> None:
    origins = load_config(file, ["cache.block_size=8"]).origins
    assert origins["model"] == f"{file}:1"
    assert origins["scheduler.name"] == f"{file}:3"
    assert origins["scheduler.max_num_batched_tokens"] == "default"
    assert origins["run.sampling.temperature"] == f"{file}:7"
    assert origins["cache.block_size"] == "--set cache.block_size=8"
    assert origins["seed"] == "default"


def test_every_key_of_the_schema_has_a_value_and_an_origin(file: Path) -> None:
    resolved = load_config(file)
    assert {path[0] for path in resolved.leaves} == set(Config.model_fields)
    assert set(resolved.origins) == {".".join(map(str, path)).replace(".0", "[0]") for path in resolved.leaves}


def test_the_origin_of_a_mapping_is_llm() -> None:
    origins = config_from_mapping({"model": "demo", "cache": {"block_size": 8}}).origins
    assert origins["cache.block_size"] == origins["model"] == "LLM(...)"
    assert origins["cache.num_blocks_override"] == "default"


def test_settings_win_over_the_file_and_later_ones_over_earlier(file: Path) -> None:
    config = load_config(
        file, ["scheduler.max_num_seqs=8", "scheduler.max_num_seqs=9", "run.sampling={top_p: 5e-1}"]
    ).config
    assert config.scheduler.max_num_seqs == 9
    assert config.run is not None
    assert config.run.sampling == {"top_p": 0.5}


def test_a_setting_can_begin_a_section_and_end_a_value() -> None:
    config = config_from_mapping(
        {"model": "demo", "max_model_len": 4}, overrides=["run.task=generate", "max_model_len="]
    )
    assert config.config.run is not None
    assert config.config.max_model_len is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("scheduler", "--set scheduler: must be key=value"),
        ("a..b=1", "--set a..b=1: the key 'a..b' has an empty part"),
        ("=1", "--set =1: the key '' has an empty part"),
        ("model.x=1", "--set model.x=1: model.x cannot be set: model is 'demo', not a section"),
        ("seed=[1", "--set seed=[1"),
        ("seed=x", "--set seed=x: seed must be a whole number"),
        ("sheduler.name=x", "--set sheduler.name=x: unknown key sheduler; did you mean 'scheduler'?"),
    ],
)
def test_a_bad_setting_is_reported_as_it_was_typed(file: Path, setting: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [setting])
    assert str(caught.value).startswith(expected)


def test_files_of_a_configuration_are_relative_to_it_and_those_of_the_command_line_to_the_current_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model").mkdir()
    monkeypatch.chdir(elsewhere)
    resolved = load_config(file, ["run.output=out.jsonl", "model=model"])
    assert resolved.base == tmp_path
    assert resolved.path("in.jsonl") == tmp_path / "in.jsonl"
    assert resolved.config.run is not None
    assert resolved.path(resolved.config.run.output or "") == elsewhere / "out.jsonl"
    assert resolved.config.model == str(elsewhere / "model")


@pytest.mark.parametrize(
    ("written", "num_bytes"),
    [(1000, 1000), ("1000", 1000), ("2GiB", 2**31), ("2 GiB", 2**31), ("0.5gib", 2**29), ("500MB", 500_000_000)],
)
def test_bytes_are_a_number_or_have_a_unit(written: object, num_bytes: int) -> None:
    resolved = config_from_mapping({"model": "demo", "cache": {"kv_bytes": written}})
    assert resolved.config.cache.kv_bytes == num_bytes
    assert f"kv_bytes: {num_bytes}" in show(resolved)


def test_a_name_of_a_hub_is_not_taken_for_a_folder() -> None:
    assert config_from_mapping({"model": "x"}, overrides=["model=org/name"]).config.model == "org/name"


def test_load_format_is_the_loaders_name() -> None:
    resolved = config_from_mapping({"model": "demo", "load_format": "dummy"})
    assert resolved.config.loader.name == "dummy"
    assert resolved.origins["loader.name"] == "LLM(...)"
    assert config_from_mapping({"model": "demo", "load_format": "auto"}).config.loader.name == "safetensors"


def test_arrays_scalars_tuples_and_paths_are_plain_values() -> None:
    mapping = {"model": Path("demo"), "seed": np.int64(4), "run": {"prompts": ("a", "b")}}
    config = config_from_mapping(mapping).config
    assert (config.model, config.seed) == ("demo", 4)
    assert config.run is not None
    assert config.run.prompts == ["a", "b"]


def test_a_bare_name_of_a_kernel_is_a_section_with_that_name() -> None:
    short = config_from_mapping({"model": "demo", "kernels": {"rms_norm": "reference"}})
    long = config_from_mapping({"model": "demo", "kernels": {"rms_norm": {"name": "reference"}}})
    assert short.config == long.config
    assert short.config.kernels["rms_norm"].name == "reference"
    assert set(short.plugin_options) == {"loader", "attention", "scheduler", "sampler", "kernels.rms_norm"}
    assert short.origins["kernels.rms_norm.name"] == "LLM(...)"


def test_what_is_shown_reads_back_as_the_same_configuration(file: Path, tmp_path: Path) -> None:
    resolved = load_config(file, ["seed=7", "run.prompts=['on', '12', 'a # b', \"tab\\there\", '']"])
    shown = show(resolved)
    assert "max_num_seqs: 4" in shown
    assert f"# {file}:4" in shown
    (tmp_path / "again.yaml").write_text(shown)
    assert load_config(tmp_path / "again.yaml").config == resolved.config


def test_the_schema_takes_a_bare_name_for_a_kernel() -> None:
    schema = json_schema()
    assert {"type": "string"} in schema["properties"]["kernels"]["additionalProperties"]["anyOf"]
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["required"] == ["model"]


def test_a_setting_of_a_flag_is_named_by_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^--device gpu: device must be one of"):
        config_from_mapping({"model": "demo"}, overrides=[Setting(("device",), "gpu", "--device gpu")])


def test_each_registry_is_a_fresh_one(file: Path) -> None:
    resolved = load_config(file)
    assert resolved.registry is not resolved.registry
