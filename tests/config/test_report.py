"""Everything that is wrong with a configuration is in one report, each with file, line and what to write instead."""

import re
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tinyvllm._checks import shown
from tinyvllm.config import config_from_mapping, load_config
from tinyvllm.config.other_words import LATER, MOVED, RENAMED
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
        ("cache: {kv_bytes: 2 apples}", "cache.kv_bytes must be a number of bytes, or one with a unit as in 2GiB"),
        ("cache: {kv_bytes: 0}", "cache.kv_bytes must be at least 1, got 0"),
        ("cache: {kv_bytes: -2GiB}", "cache.kv_bytes must be a number of bytes"),
        ("cache: {kv_bytes: true}", "cache.kv_bytes must be a whole number, got true"),
        ("cache: {kv_bytes: 1.5}", "cache.kv_bytes must be a whole number, got 1.5"),
        ("cache: {kv_bytes: 1000000EiB}", "cache.kv_bytes must be at most 9223372036854775807"),
        (
            "cache: {kv_bytes: 1GiB, num_blocks_override: 3}",
            "cache.kv_bytes and cache.num_blocks_override are both given",
        ),
        ("kernels: {rms_norm: {nme: x}}", "kernels.rms_norm.name is missing"),
        ("kernels: {rms_nrm: reference}", "kernels: there is no op 'rms_nrm'; did you mean 'rms_norm'? the ops are"),
        ("kernels: {rms_norm: mine}", "kernels.rms_norm: there is no kernel plugin 'mine'"),
        ("load_format: dummy\nloader: {name: safetensors}", "load_format is dummy but loader.name is 'safetensors'"),
        ("num_blocks: 4", "unknown key num_blocks; it is written cache.num_blocks_override"),
        ("scheduler: {block_size: 4}", "unknown key scheduler.block_size; it is written cache.block_size"),
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
    for value in (7, "x", [7]):
        with pytest.raises(ConfigError, match=f"{key} is not available in this version of tinyvllm; remove it"):
            config_from_mapping({"model": "demo", key: value})


@pytest.mark.parametrize("key", sorted(RENAMED.keys() - MOVED.keys()))
def test_words_of_other_engines_point_to_ours(key: str) -> None:
    with pytest.raises(ConfigError, match=r"it is written|did you mean") as caught:
        config_from_mapping({"model": "demo", key: 1})
    assert RENAMED[key].split(" ")[0].rpartition(".")[2] in str(caught.value)


def test_no_key_of_the_schema_is_called_later() -> None:
    assert not LATER.keys() & set(Config.model_fields)


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


@pytest.mark.parametrize(
    "path", [None, 3, b"a.yaml", [], "a\0.yaml", "x" * 300, "\ud800.yaml", "~no_such_user/a.yaml"], ids=ascii
)
def test_what_is_no_path_of_a_file_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mapping", [None, 3, "demo", ["model", "demo"]], ids=repr)
def test_what_is_no_mapping_is_no_configuration(mapping: Any) -> None:
    with pytest.raises(ConfigError, match="a configuration is a mapping of its keys, got"):
        config_from_mapping(mapping)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_long_value_is_cut_short(file: Path) -> None:
    assert len(problems(file, f"model: demo\nseed: {'x' * 10_000}\n")) < 400


def test_at_most_ten_problems_are_printed() -> None:
    with pytest.raises(ConfigError, match=r"^70 problems") as caught:
        config_from_mapping({"model": "demo", **{f"zzz{i}": 1 for i in range(70)}})
    assert str(caught.value).endswith("... and 60 more")


MANY = 90_000
MANY_MISTAKES: dict[str, dict[str, Any]] = {
    "keys": {f"key{i}": 1 for i in range(MANY)},
    "cache": {"cache": {f"key{i}": 1 for i in range(MANY)}},
    "options": {"scheduler": {f"key{i}": 1 for i in range(MANY)}},
    "options of a plugin that is not there": {
        "scheduler": {"name": "x", **{f"max_num_sek{i}": 1 for i in range(MANY)}}
    },
    "ops": {"kernels": {f"rms_norm{i}": "x" for i in range(MANY)}},
    "prompts": {"run": {"prompts": [1] * MANY}},
    "sampling": {"run": {"sampling": {f"temperatur{i}": 1 for i in range(MANY)}}},
    "plugins": {"plugins": [f"./missing{i}.py" for i in range(MANY)]},
}


@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("keys", "options", "prompts") else pytest.param(kind, marks=pytest.mark.slow)
     for kind in MANY_MISTAKES],
)  # fmt: skip
def test_ninety_thousand_mistakes_are_reported_at_once(kind: str) -> None:
    begin = time.process_time()
    with pytest.raises(TinyvllmError) as caught:
        config_from_mapping({"model": "demo", **MANY_MISTAKES[kind]})
    assert time.process_time() - begin < 2  # it was 21 s
    lines = str(caught.value).splitlines()
    assert len(lines) <= 12
    assert re.fullmatch(r"[\d,]+ problems in the configuration|LLM.*at most 100, got a list", lines[0])


def test_a_file_of_too_many_keys_is_refused_at_once(file: Path) -> None:
    begin = time.process_time()
    report = problems(file, "model: demo\n" + "".join(f"k{i}: 1\n" for i in range(MANY)))
    assert time.process_time() - begin < 2
    assert report.startswith("a.yaml:10000: more than 20,000 keys and values")


HOSTILE = "\x1b[31mred\x07\u202e\x9b\u2028"


@pytest.mark.parametrize(
    "text",
    [
        '"\\e[31mred\\a": 1',
        '"\\e[31mred\\a": {x: 1}',
        'seed: "\\e[31mred\\a"',
        'device: "\\e[31mred\\a"',
        'cache: {"\\e[31mred\\a": 1}',
        'kernels: {"\\e[31mred\\a": x}',
        'kernels: {rms_norm: "\\e[31mred\\a"}',
        'scheduler: {name: "\\e[31mred\\a"}',
        'scheduler: {"\\e[31mred\\a": 1}',
        'run: {sampling: {"\\e[31mred\\a": 1}}',
        'run: {sampling: {stop: {"\\e[31mred\\a": 1}}}',
        'plugins: ["./\\e[31mred\\a.py"]',
        'plugins: ["\\e[31mred\\a"]',
        "seed: \u202ered",
        "seed: !\u202ered x",
        "seed: *\u202ered",
        "\u202ered: 1",
        "seed: \u202ered: x",
    ],
)
def test_what_a_terminal_would_obey_is_escaped(file: Path, text: str) -> None:
    file.write_text(f"model: demo\n{text}\n", encoding="utf-8")
    with pytest.raises(TinyvllmError) as caught:
        load_config(file)
    assert re.search(r"red", str(caught.value))
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "override", [f"{HOSTILE}=1", f"seed={HOSTILE}", f"{HOSTILE}", f"seed=[{HOSTILE}", f".{HOSTILE}=1"]
)
def test_what_a_terminal_would_obey_is_escaped_in_settings(override: str) -> None:
    with pytest.raises(TinyvllmError) as caught:
        config_from_mapping({"model": "demo"}, overrides=[override])
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"model": "a\0b"}, "model must be a path, without the character U+0000, got 'a\\x00b'"),
        ({"plugins": ["./a\0.py"]}, "plugins[0] must be a path, without the character U+0000, got './a\\x00.py'"),
        ({"tokenizer": "\0"}, "tokenizer must be a path"),
        ({"chat_template": "\0"}, "chat_template must be a path"),
        ({"run": {"output": "\0"}}, "run.output must be a path"),
        ({"run": {"prompts_file": "x" * 300}}, "run.prompts_file must be a path of at most 4095 bytes, each name"),
        ({"model": "/x" * 3000}, "model must be a path of at most 4095 bytes"),
        ({"model": "~nobody_of_this_name/x"}, "model begins with '~nobody_of_this_name', and that home folder is not"),
        (
            {"model": "a\ud800"},
            "model must be text that UTF-8 can hold, without half of a surrogate pair, got",
        ),
        ({"a\ud800": 1}, "the key a\\ud800 must be text that UTF-8 can hold"),
        ({"run": {"prompts": ["\udfff"]}}, "run.prompts[0] must be text that UTF-8 can hold"),
        ({"loader": {"x": {"y": ["\ud800"]}}}, "loader.x.y[0] must be text that UTF-8 can hold"),
        ({"seed": 10**5000}, "seed must be less than 9223372036854775808, got (a number of about 5,001 digits)"),
        ({"seed": -(10**5000)}, "seed must be at least 0, got -(a number of about 5,001 digits)"),
        ({10**5000: 1}, "the key (a number of about 5,001 digits) must be text"),
        ({"max_model_len": 2**31}, "max_model_len must be at most 2147483647, got 2147483648"),
        ({"cache": {"num_blocks_override": 10**400}}, "cache.num_blocks_override must be at most 2147483647"),
        ({"cache": {"block_size": 10**5000}}, "cache.block_size must be a power of two"),
        ({"scheduler": {"max_num_seqs": 10**9}}, "scheduler.max_num_seqs must be at most 65536, got 1000000000"),
        ({"loader": {"x": 10**5000}}, "unknown key loader.x"),
        ({"dtype": "x" * 10**6}, "dtype must be one of"),
        ({"scheduler": "x" * 5_000}, "scheduler must be a mapping (key: value), got 'xxx"),
        ({"x" * 10**6: 1}, "unknown key xxx"),
        ({"kernels": {"x" * 10**6: "y"}}, "there is no op 'xxx"),
        ({"scheduler": {"name": "x" * 10**6}}, "there is no scheduler plugin"),
        ({"plugins": ["x" * 10**6]}, "plugins[0] must be a path of at most"),
    ],
    ids=lambda value: shown(value)[:40],
)
def test_whatever_a_mapping_holds_is_reported_shortly(mapping: dict[Any, Any], expected: str) -> None:
    with pytest.raises(TinyvllmError) as caught:
        config_from_mapping({"model": "demo", **mapping})
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_list_where_a_choice_belongs_is_a_mistake_like_any_other() -> None:
    with pytest.raises(ConfigError, match=r"run.task must be one of generate; got a list"):
        config_from_mapping({"model": "demo", "run": {"task": ["serve"]}})
