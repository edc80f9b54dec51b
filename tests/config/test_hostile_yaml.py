"""Whatever a configuration file holds, the answer is a configuration or a report that names the file, and it is quick.

The long run: ``python -m pytest tests/config/test_hostile_yaml.py --num-mutants 100000``.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.mutate import mutant_of_text, without_doubled_keys
from tests.mutate import mutant_of_tree as mutated_tree
from tinyvllm.config import config_from_mapping, load_config
from tinyvllm.config.show import show
from tinyvllm.errors import ConfigError, PluginError

CONFIGS = Path(__file__).parents[2] / "configs"
RICH = """\
model: demo
dtype: auto
max_model_len: 512
seed: 0x10
tensor_parallel_size: 1
loader: {name: dummy}
scheduler:
  name: static
  max_num_seqs: 16 # a comment
cache: &cache {block_size: 16, kv_bytes: 1GiB}
kernels:
  rms_norm: reference
run:
  prompts: ["12+7=", 'b', c]
  sampling: {temperature: 1e-1, stop: ["\\n"], logit_bias: {13: -100}, seed: null}
  output: results.jsonl
"""
MAX_SECONDS = 2
MAX_CHARACTERS = 6_000


def sources() -> list[str]:
    return [RICH, *(path.read_text() for path in sorted(CONFIGS.glob("*.yaml")))]


def test_any_mutant_of_a_file_is_a_configuration_or_a_report(
    tmp_path: Path, num_mutants: int, mutant_seed: int
) -> None:
    path, texts, num_right = tmp_path / "mutant.yaml", sources(), 0
    for index in range(num_mutants):
        mutant = mutant_of_text(texts[index % len(texts)], mutant_seed, index)
        path.write_bytes(mutant.value)
        begin = time.process_time()
        try:
            show(load_config(path))
            num_right += 1
        except (ConfigError, PluginError) as error:
            check_report(str(error), str(path), str(mutant))
        except BaseException as error:
            pytest.fail(f"{mutant}: {type(error).__name__}: {error}"[:2_000])
        assert time.process_time() - begin < MAX_SECONDS, mutant
    assert num_mutants < 100 or 0 < num_right < num_mutants


def test_any_mutant_of_a_mapping_is_a_configuration_or_a_report(
    tmp_path: Path, num_mutants: int, mutant_seed: int
) -> None:
    (tmp_path / "rich.yaml").write_text(RICH)
    resolved = load_config(tmp_path / "rich.yaml")
    tree = {**resolved.config.model_dump(mode="json"), "model": "demo", "max_num_seqs": 4, "swap_space": 0}
    del tree["plugins"]  # it names code to import
    for index in range(num_mutants):
        mutant = mutated_tree(tree, mutant_seed, index)
        begin = time.process_time()
        try:
            show(config_from_mapping(without_doubled_keys(mutant.value)))
        except (ConfigError, PluginError) as error:
            check_report(str(error), "LLM(...)", str(mutant))
        except BaseException as error:
            pytest.fail(f"{mutant}: {type(error).__name__}: {error}"[:2_000])
        assert time.process_time() - begin < MAX_SECONDS, mutant


def check_report(report: str, source: str, mutant: str) -> None:
    """A report is short and printable, and names what it is about."""
    assert source in report, (mutant, report)
    assert report.replace("\n", "").isprintable(), (mutant, report)
    assert len(report) < MAX_CHARACTERS, (mutant, report)
