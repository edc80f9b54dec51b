"""Everything that is wrong with a configuration is in one report, each with file, line and what to write instead."""

from pathlib import Path
from textwrap import dedent

import pytest

from tinyvllm.config import config_from_mapping, load_config
from tinyvllm.config.other_words import LATER, RENAMED
from tinyvllm.config.schema import Config
from tinyvllm.errors import ConfigError, PluginError, TinyvllmError


def problems(path: Path, text: str, *overrides: str) -> str:
    path.write_text(dedent(text))
    with pytest.raises(TinyvllmError) as caught:
        load_config(path, overrides)
    return str(caught.value).replace(str(path), "a.yaml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


def test_unknown_key_wrong_type_bad_enum_and_duplicate_are_all_reported(file: Path) -> None:
    report = problems(
        file,
        """\
        model: demo
        modle: x
        device: gpu
        seed: one
        cache: {block_size: 24}
        model: other
        """,
    )
    assert report.splitlines() == [
        "5 problems in the configuration",
        "a.yaml:2: unknown key modle; did you mean 'model'?",
        "     2 | modle: x",
        "a.yaml:3: device must be one of auto, cpu, cuda, emulator; got 'gpu'; did you mean 'cuda'?",
        "     3 | device: gpu",
        "a.yaml:4: seed must be a whole number, got 'one'",
        "     4 | seed: one",
        "a.yaml:5: cache.block_size must be a power of two from 1 to 64, got 24; try 16 or 32",
        "     5 | cache: {block_size: 24}",
        "a.yaml:6: model is given twice, first in line 1; keep one",
        "     6 | model: other",
    ]


def test_core_plugins_options_sampling_and_settings_share_one_report(file: Path) -> None:
    report = problems(
        file,
        """\
        model: demo
        scheduler:
          name: continous
          max_num_seqs: 0
        attention: {name: paged, window: 4}
        plugins: [./missing.py]
        run:
          prompts: [hi]
          sampling:
            temperature: -1
            max_token: 4
        """,
        "cache.block_size=x",
    )
    heads = [line for line in report.splitlines() if line.startswith(("a.yaml", "--set"))]
    assert [head.split(": ")[0] for head in heads] == [
        "a.yaml:3",
        "a.yaml:4",
        "a.yaml:5",
        "a.yaml:6",
        "a.yaml:10",
        "a.yaml:11",
        "--set cache.block_size=x",
    ]
    assert "there is no scheduler plugin 'continous'; did you mean 'continuous'?" in heads[0]
    assert "unknown key attention.window" in heads[2]
    assert "did you mean max_tokens?" in heads[5]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed: true", "seed must be a whole number, got true"),
        ("seed: '4'", "seed must be a whole number, got '4'; remove the quotes"),
        ("seed: 1.0", "seed must be a whole number, got 1.0"),
        ("seed: -1", "seed must be at least 0, got -1"),
        ("batch_invariant: on", "batch_invariant must be true or false, got 'on'"),
        ("scheduler: static", "scheduler must be a mapping (key: value), got 'static'; write {name: static}"),
        ("scheduler:", "scheduler must be a mapping (key: value), got null; remove the key, or give it keys"),
        ("run: {prompts: [42]}", "run.prompts[0] must be text, got 42; put it in quotes: '42'"),
        ("run: {prompts: 12+7=}", "run.prompts must be a list, got '12+7='; put it in a list: [...]"),
        ("run: {prompts: []}", "run.prompts must be a list of at least 1, got []"),
        ("run: {prompts: [a], prompts_file: b}", "run.prompts and run.prompts_file are both given; keep one"),
        ("run: {task: serve}", "run.task: serve is not available in this version of tinyvllm"),
        ("run: {output: 4}", "run.output must be the path of a file, as text, got 4"),
        ("cache: {gpu_memory_utilization: 2}", "cache.gpu_memory_utilization must be at most 1.0, got 2"),
        ("kernels: {rms_norm: {nme: x}}", "kernels.rms_norm.name is missing"),
        ("kernels: {rms_nrm: reference}", "kernels: there is no op 'rms_nrm'; did you mean 'rms_norm'? the ops are"),
        ("kernels: {rms_norm: mine}", "kernels.rms_norm: there is no kernel plugin 'mine'"),
        ("load_format: dummy\nloader: {name: safetensors}", "load_format is dummy but loader.name is 'safetensors'"),
        ("max_num_seqs: 4", "unknown key max_num_seqs; it is written scheduler.max_num_seqs"),
        ("num_gpu_blocks_override: 4", "unknown key num_gpu_blocks_override; it is written cache.num_blocks_override"),
        ("cache: {max_num_seqs: 4}", "unknown key cache.max_num_seqs; it is written scheduler.max_num_seqs"),
        ("block-size: 4", "unknown key block-size; it is written cache.block_size"),
        ("trust_remote_code: true", "trust_remote_code: tinyvllm never runs code that comes with a checkpoint"),
        ("<<: {seed: 4}", "<<: merge keys are not part of YAML 1.2; write the keys out"),
        ("1: 2", "the key 1 must be text"),
        ("sampler: {tempature: 1}", "unknown key sampler.tempature; did you mean 'run.sampling.temperature'?"),
        ("enable_prefix_caching: true", "enable_prefix_caching is not available in this version of tinyvllm"),
        ("cache: {enable_prefix_caching: true}", "cache.enable_prefix_caching is not available in this version"),
        ("scheduler: {scheduling_policy: priority}", "scheduler.scheduling_policy is not available in this version"),
        ("run: {sampling: {top_p: 2}}", "run.sampling.top_p must be"),
        ("run: {sampling: {min_tokens: 9, max_tokens: 3}}", "run.sampling.min_tokens must be"),
        ("run: {sampling: {structured_outputs: {}}}", "run.sampling.structured_outputs is not available"),
        ("run: {sampling: 4}", "run.sampling must be a mapping (key: value), got 4"),
    ],
)
def test_a_mistake_says_what_to_write(file: Path, line: str, expected: str) -> None:
    assert expected in problems(file, f"model: demo\n{line}\n")


def test_a_single_problem_is_its_own_report(file: Path) -> None:
    report = problems(file, "model: demo\nseed: x\n")
    assert report == "a.yaml:2: seed must be a whole number, got 'x'\n     2 | seed: x"


def test_a_missing_model_says_what_to_add(file: Path) -> None:
    assert (
        problems(file, "seed: 1\n") == "a.yaml: model is missing; add 'model: demo', or a folder in Hugging Face layout"
    )


@pytest.mark.parametrize("key", sorted(LATER))
def test_keys_of_later_versions_are_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is not available in this version of tinyvllm; remove it"):
        config_from_mapping({"model": "demo", key: 1})


@pytest.mark.parametrize("key", sorted(RENAMED))
def test_words_of_other_engines_point_to_ours(key: str) -> None:
    with pytest.raises(ConfigError, match=r"it is written|did you mean") as caught:
        config_from_mapping({"model": "demo", key: 1})
    assert RENAMED[key].split(" ")[0].rpartition(".")[2] in str(caught.value)


def test_no_key_of_the_schema_is_called_later() -> None:
    assert not LATER & set(Config.model_fields)


def test_only_plugin_problems_are_a_plugin_error(file: Path) -> None:
    file.write_text("model: demo\nscheduler: {name: nope}\n")
    with pytest.raises(PluginError, match=r"a.yaml:2: scheduler: there is no scheduler plugin 'nope'"):
        load_config(file)


def test_the_mistakes_of_a_mapping_name_llm() -> None:
    with pytest.raises(ConfigError, match=r"^LLM\(\.\.\.\): cache.block_size must be a power of two"):
        config_from_mapping({"model": "demo", "cache": {"block_size": 24}})


def test_a_mapping_holds_plain_values_only() -> None:
    with pytest.raises(ConfigError, match=r"LLM\(\.\.\.\): run.x must be text, a number, a flag.*, got a object"):
        config_from_mapping({"model": "demo", "run": {"x": object()}})
    nested: dict[str, object] = {}
    nested["a"] = nested
    with pytest.raises(ConfigError, match="nested deeper than 32"):
        config_from_mapping(nested)


def test_a_missing_file_names_its_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("model: demo\n")
    with pytest.raises(ConfigError, match=r"quickstat.yaml: there is no such file; did you mean '.*quickstart.yaml'"):
        load_config(tmp_path / "quickstat.yaml")


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_long_value_is_cut_short(file: Path) -> None:
    assert len(problems(file, f"model: demo\nseed: {'x' * 10_000}\n")) < 400


def test_at_most_fifty_problems_are_printed() -> None:
    with pytest.raises(ConfigError, match=r"^70 problems") as caught:
        config_from_mapping({"model": "demo", **{f"zzz{i}": 1 for i in range(70)}})
    assert str(caught.value).endswith("... and 20 more")


def test_a_list_where_a_choice_belongs_is_a_mistake_like_any_other() -> None:
    with pytest.raises(ConfigError, match=r"run.task must be one of generate; got a list"):
        config_from_mapping({"model": "demo", "run": {"task": ["serve"]}})
