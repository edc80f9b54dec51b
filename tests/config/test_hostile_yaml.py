"""Whatever a configuration file holds, the answer is a configuration or a report that names the file, and it is quick.

The long run: ``python -m pytest tests/config/test_hostile_yaml.py --num-mutants 100000``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.mutate import Mutant, mutant_of_text, tree_mutants, without_doubled_keys
from tinyvllm.config import Resolved, config_from_mapping, load_config
from tinyvllm.config.show import show
from tinyvllm.config.yaml_source import parse_yaml
from tinyvllm.errors import ConfigError, PluginError
from tinyvllm.registry.sources import announcements

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


@pytest.fixture(autouse=True)
def listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed plugins are the same for every mutant, and listing them takes longer than reading one."""
    announced = announcements()
    monkeypatch.setattr("tinyvllm.registry.announcements", lambda: announced)


def sources() -> list[str]:
    return [RICH, *(path.read_text() for path in sorted(CONFIGS.glob("*.yaml")))]


def test_any_mutant_of_a_file_is_a_configuration_or_a_report(
    tmp_path: Path, num_mutants: int, mutant_seed: int
) -> None:
    path, texts = tmp_path / "mutant.yaml", sources()

    def load(mutant: Mutant) -> Resolved:
        path.write_bytes(mutant.value)
        return load_config(path)

    mutants = (mutant_of_text(texts[i % len(texts)], mutant_seed, i) for i in range(num_mutants))
    check_all(mutants, load, str(path), num_mutants)


def test_any_mutant_of_a_mapping_is_a_configuration_or_a_report(num_mutants: int, mutant_seed: int) -> None:
    tree = parse_yaml(RICH.encode(), "rich.yaml").data
    mutants = tree_mutants(tree, mutant_seed, num_mutants)
    check_all(mutants, lambda m: config_from_mapping(without_doubled_keys(m.value)), "LLM(...)", num_mutants)


def check_all(mutants: Iterable[Mutant], load: Callable[[Mutant], Resolved], source: str, num_mutants: int) -> None:
    """Each mutant is a configuration that can be shown, or a report that names ``source``; there are both."""
    failures, num_right = [], 0
    for mutant in mutants:
        begin, wrong = time.process_time(), ""
        try:
            show(load(mutant))
            num_right += 1
        except (ConfigError, PluginError) as error:
            wrong = wrong_with_report(str(error), source)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            wrong = f"{type(error).__name__}: {error} at {Path(where.filename).name}:{where.lineno}"
        seconds = time.process_time() - begin
        if seconds > MAX_SECONDS:
            wrong += f" it took {seconds:.1f} s"
        if wrong:
            failures.append(f"{mutant}: {wrong}"[:1_000])
    assert not failures, f"{len(failures)} of {num_mutants}\n" + "\n".join(failures[:50])
    assert num_mutants < 20 or 0 < num_right < num_mutants


def wrong_with_report(report: str, source: str) -> str:
    """What a report lacks: it is short and printable, and names what it is about."""
    if source not in report:
        return f"{source} is not named: {report}"
    is_readable = report.replace("\n", "").isprintable() and len(report) < MAX_CHARACTERS
    return "" if is_readable else f"a report of {len(report)} characters, not printable or too long: {report!r}"
