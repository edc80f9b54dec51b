"""`python -m tinyvllm --config`, `generate`, and what they print."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.tiny import write_checkpoint
from tinyvllm.cli.main import main

WriteConfig = Callable[[str], Path]
GREEDY = "sampling: {temperature: 0.0, max_tokens: 4, ignore_eos: true}"


def test_each_prompt_is_printed_with_its_text_and_then_a_table(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(f"scheduler: {{max_num_seqs: 2}}\nrun:\n  prompts: [one, two, three]\n  {GREEDY}\n")
    assert main(["--config", str(path)]) == 0
    out, err = capsys.readouterr()
    prompts = re.findall(r"^> (.*)$", out, re.MULTILINE)
    assert prompts == ["one", "two", "three"]
    assert "│" not in out
    table = {key.strip(): value.strip() for key, value in re.findall(r"│ (.*?) │ (.*?) │", err)}
    assert table["requests"] == "3"
    assert table["prompt tokens"] == "11"
    assert table["generated tokens"] == "12"
    assert set(table) >= {"time to first token", "tokens/s", "KV blocks used"}
    assert "3 texts ended at max_tokens = 4; --max-tokens N allows more" in err


def test_tensors_that_are_not_used_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "model", num_hidden_layers=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    (tmp_path / "in.jsonl").write_text('{"prompt_token_ids": [1, 2], "sampling": {"detokenize": false}}')
    (tmp_path / "run.yaml").write_text("model: model\nskip_tokenizer_init: true\nrun: {prompts_file: in.jsonl}\n")
    assert main(["--config", str(tmp_path / "run.yaml")]) == 0
    assert "checkpoint: 9 tensors not used: model.layers.1.input_layernorm.weight, " in capsys.readouterr().err


def test_the_verb_run_is_the_same(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(f"run:\n  prompts: [one]\n  {GREEDY}\n")
    assert main(["run", "--config", str(path)]) == 0
    assert "> one" in capsys.readouterr().out


def test_generate_takes_prompts_and_flags(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--set", "load_format=dummy", "--max-tokens", "3", "--temperature", "0", "--ignore-eos", "--n", "2"]
    assert main(["generate", "--model", str(tiny_model), *flags, "--prompt", "a", "b"]) == 0
    out, err = capsys.readouterr()
    assert re.findall(r"^> (.*)$", out, re.MULTILINE) == ["a", "b"]
    assert re.findall(r"^\[(\d)\]", out, re.MULTILINE) == ["0", "1", "0", "1"]
    assert re.search(r"generated tokens\s+│\s+12 ", err)


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["generate", "a", "--set", "run.sampling.logprobs=1"], "logprobs"),
        (["generate", "a", "--set", "run.sampling.prompt_logprobs=0"], "prompt_logprobs"),
        (["chat", "--n", "2"], "n"),
        (["chat", "--set", "run.sampling.logprobs=1"], "logprobs"),
    ],
)
def test_what_a_command_cannot_show_is_refused(
    arguments: list[str], refused: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--model", str(tiny_model), "--set", "load_format=dummy"]) == 2
    assert f"run.sampling.{refused} cannot be used here" in capsys.readouterr().err


def test_prompts_of_the_command_line_replace_those_of_the_file(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(f"run:\n  prompts_file: absent.jsonl\n  {GREEDY}\n")
    assert main(["generate", "--config", str(path), "here"]) == 0
    assert "> here" in capsys.readouterr().out


def test_a_prompt_that_does_not_fit_spoils_only_itself(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(f"run:\n  prompts: [good, {'x' * 300}]\n  {GREEDY}\n")
    assert main(["--config", str(path)]) == 2
    out, err = capsys.readouterr()
    assert "error: request 'line-1': the prompt has 300 tokens and max_model_len is 256" in out
    assert "requests            │ 1, 1 failed" in err
    assert err.endswith("\n1 of 2 prompts could not be served; see above\n")


def test_text_of_a_model_cannot_command_the_terminal(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config('run:\n  prompts: ["\\e[31mred"]\n  sampling: {max_tokens: 200, ignore_eos: true, seed: 1}\n')
    assert main(["--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert "> \\x1b[31mred" in out
    assert not set(out) & {chr(code) for code in range(32) if chr(code) not in "\n\t"}


def test_a_file_of_prompts_without_output_goes_to_standard_output_as_json_lines(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "id": 7}\n{"prompt": "b"}\n')
    path = write_config(f"run:\n  prompts_file: in.jsonl\n  {GREEDY}\n")
    assert main(["--config", str(path)]) == 0
    out, err = capsys.readouterr()
    results = {line["index"]: line for line in map(json.loads, out.splitlines())}
    assert [results[0]["id"], results[1]["id"]] == [7, None]
    assert "KV blocks used" in err


@pytest.mark.parametrize("text", ["", "run: {sampling: {max_tokens: 4}}\n"])
def test_nothing_to_do_is_an_error_that_says_what_to_give(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert main(["--config", str(write_config(text))]) == 2
    assert "give run.prompts or run.prompts_file" in capsys.readouterr().err


def test_sampling_that_is_not_given_is_the_checkpoints(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 9, "eos_token_id": 258}))
    flags = ["--set", "load_format=dummy", "--ignore-eos"]
    assert main(["generate", "--model", str(tmp_path), *flags, "a"]) == 0
    assert re.search(r"generated tokens\s+│\s+9 ", capsys.readouterr().err)
