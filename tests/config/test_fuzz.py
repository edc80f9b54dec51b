"""Whatever a configuration holds, the answer is a configuration or a report."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.config import config_from_mapping
from tinyvllm.config.check_core import walk
from tinyvllm.config.other_words import LATER, NEVER, RENAMED
from tinyvllm.config.path_text import wrong_with_path
from tinyvllm.config.schema import Config
from tinyvllm.config.show import show
from tinyvllm.config.yaml_source import parse_yaml
from tinyvllm.errors import TinyvllmError

WORDS = sorted({path[-1] for path, _ in walk(Config)} | {"rms_norm", "temperature", "stop", "logit_bias", "a.b", ""})
NAMES = ["paged", "static", "continuous", "default", "dummy", "reference", "serve", "auto", "cpu", "demo", "nope"]
KEYS = st.sampled_from(WORDS + sorted(LATER) + sorted(RENAMED) + sorted(NEVER)) | st.integers(0, 3) | st.none()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(NAMES)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
SECTIONS = [name for name in Config.model_fields if name not in ("plugins", "model")]  # plugins would be imported


MAPPINGS = st.dictionaries(st.sampled_from(SECTIONS), VALUES, max_size=6)
OVERRIDDEN = st.lists(st.sampled_from(WORDS), max_size=2)


def check_answer(mapping: dict[str, Any], words: list[str]) -> None:
    overrides = [f"{word}={{a: [1, x]}}" for word in words if word != "plugins"]
    with contextlib.suppress(TinyvllmError):
        config_from_mapping({"model": "demo", **mapping}, overrides=overrides)


@settings(max_examples=80)
@given(MAPPINGS, OVERRIDDEN)
def test_any_mapping_is_a_configuration_or_a_report(mapping: dict[str, Any], words: list[str]) -> None:
    check_answer(mapping, words)


@pytest.mark.slow
@settings(max_examples=1000)
@given(MAPPINGS, OVERRIDDEN)
def test_many_mappings_are_configurations_or_reports(mapping: dict[str, Any], words: list[str]) -> None:
    check_answer(mapping, words)


RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "tokenizer": st.none() | st.text().filter(lambda text: not wrong_with_path(text)),
        "chat_template": st.none() | st.text(min_size=1).filter(lambda text: not wrong_with_path(text)),
        "device": st.sampled_from(["auto", "cpu", "cuda", "emulator"]),
        "scheduler": st.fixed_dictionaries({"name": st.sampled_from(["static", "continuous"])}),
        "cache": st.fixed_dictionaries({"gpu_memory_utilization": st.floats(0, 1, exclude_min=True)}),
        "run": st.fixed_dictionaries(
            {"prompts": st.lists(st.text(), min_size=1, max_size=3)},
            optional={"sampling": st.fixed_dictionaries({"top_p": st.floats(0, 1, exclude_min=True)})},
        ),
    },
)


@settings(max_examples=60)
@given(RIGHT)
def test_what_is_shown_of_any_configuration_reads_back_as_the_same(mapping: dict[str, Any]) -> None:
    check_read_back(mapping)


@pytest.mark.slow
@settings(max_examples=1000)
@given(RIGHT)
def test_what_is_shown_of_many_configurations_reads_back_as_the_same(mapping: dict[str, Any]) -> None:
    check_read_back(mapping)


def check_read_back(mapping: dict[str, Any]) -> None:
    resolved = config_from_mapping({"model": "demo", **mapping})
    tree = parse_yaml(show(resolved).encode("utf-8", "surrogatepass"), "shown.yaml")
    assert tree.problems == []
    assert config_from_mapping(tree.data).config == resolved.config
