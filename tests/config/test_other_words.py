"""Scripts and files written for vLLM: flat words find their section, and words that ask for nothing are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinyvllm import LLM, SamplingParams
from tinyvllm.config import config_from_mapping, load_config
from tinyvllm.config.other_words import LATER, MOVED, NEVER, RENAMED
from tinyvllm.config.schema import Config
from tinyvllm.errors import ConfigError

FLAT: dict[str, Any] = {
    "gpu_memory_utilization": 0.5,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 128,
    "block_size": 8,
    "kv_cache_memory_bytes": 2**30,
    "num_gpu_blocks_override": 100,
    "async_scheduling": False,
}


def test_a_script_for_vllm_runs_as_it_is() -> None:
    script: dict[str, Any] = {
        "dtype": "float16",
        "tensor_parallel_size": 1,
        "trust_remote_code": False,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.9,
        "max_model_len": None,
        "max_num_seqs": 4,
        "enforce_eager": True,
        "swap_space": 0,
        "revision": None,
        "quantization": None,
        "disable_log_stats": True,
        "tokenizer_mode": "auto",
        "seed": None,
        "device": "cpu",
    }
    llm = LLM("demo", **script)
    assert llm.generate("12+7=", SamplingParams(temperature=0))[0].outputs[0].text == "19"
    assert llm.config.scheduler.max_num_seqs == 4


@pytest.mark.parametrize("word", sorted(LATER))
def test_words_that_ask_for_nothing_are_taken_and_leave_no_trace(word: str) -> None:
    plain = config_from_mapping({"model": "demo"}).config
    for value in (None, *LATER[word]):
        assert config_from_mapping({"model": "demo", word: value}).config == plain


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("tensor_parallel_size", 2),
        ("tensor_parallel_size", True),
        ("tensor_parallel_size", "1"),
        ("enable_prefix_caching", True),
        ("enable_prefix_caching", 0),
        ("swap_space", 4),
        ("quantization", "awq"),
        ("tokenizer_mode", "slow"),
        ("scheduling_policy", "priority"),
        ("enable_chunked_prefill", False),
        ("disable_log_stats", False),
        ("kv_cache_dtype", "fp8"),
        ("revision", "main"),
        ("speculative_config", {"model": "x"}),
    ],
)
def test_words_that_ask_for_something_are_refused_by_name(word: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{word} is not available in this version of tinyvllm; remove it"):
        config_from_mapping({"model": "demo", word: value})


def test_code_of_a_checkpoint_is_never_run_but_not_running_it_may_be_said() -> None:
    assert config_from_mapping({"model": "demo", "trust_remote_code": False})
    with pytest.raises(ConfigError, match="tinyvllm never runs code that comes with a checkpoint"):
        config_from_mapping({"model": "demo", "trust_remote_code": True})


def test_flat_words_find_their_section(tmp_path: Path) -> None:
    assert FLAT.keys() == MOVED.keys()
    for word, (section, key) in MOVED.items():
        mapping = {"model": "demo", "scheduler": {"name": "static"}, word: FLAT[word]}
        resolved = config_from_mapping(mapping)
        assert resolved.config.model_dump()[section][key] == FLAT[word]
        assert resolved.config.scheduler.name == "static"
    file = tmp_path / "a.yaml"
    file.write_text("model: demo\nmax_num_seqs: 4\nblock_size: 8\n")
    resolved = load_config(file, ["block_size=32"])
    assert resolved.origins["scheduler.max_num_seqs"] == f"{file}:2"
    assert (resolved.config.cache.block_size, resolved.origins["cache.block_size"]) == (32, "--set block_size=32")


def test_a_flat_word_that_is_null_is_the_default() -> None:
    flat = dict.fromkeys(FLAT)
    assert config_from_mapping({"model": "demo", **flat}).config == config_from_mapping({"model": "demo"}).config


def test_a_word_given_flat_and_in_its_section_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"max_num_seqs and scheduler.max_num_seqs are both given; keep one"):
        config_from_mapping({"model": "demo", "max_num_seqs": 4, "scheduler": {"max_num_seqs": 5}})


def test_a_bad_value_of_a_flat_word_names_the_key_and_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: demo\nblock_size: 24\n")
    with pytest.raises(ConfigError, match=r"a.yaml:2: cache.block_size must be a power of two"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(("word", "dtype"), [("half", "float16"), ("float", "float32"), (None, "auto")])
def test_dtypes_have_vllms_names_too(word: str | None, dtype: str) -> None:
    assert config_from_mapping({"model": "demo", "dtype": word}).config.dtype == dtype


def test_no_word_has_two_meanings() -> None:
    tables = [set(LATER), set(MOVED), set(NEVER), set(Config.model_fields)]
    for i, table in enumerate(tables):
        assert not any(table & other for other in tables[i + 1 :])
    assert not set(RENAMED) & (set(LATER) | set(NEVER) | set(Config.model_fields))
