"""`python -m tinyvllm --config`, `generate`, and what they print."""

import io
import json
import re
import subprocess
import sys
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
    assert "checkpoint: 9 tensors not used: 'model.layers.1.input_layernorm.weight', " in capsys.readouterr().err


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


GENERATE = [sys.executable, "-m", "tinyvllm", "generate", "--device", "cpu", "--temperature", "0"]


def pipe(text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*GENERATE, *arguments], input=text, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("text", [b"12+7=\n", b"12+7=", b"12+7=\r\n", b"\xef\xbb\xbf12+7=\n"])
def test_a_prompt_is_read_from_standard_input_where_none_is_given(text: bytes) -> None:
    done = pipe(text)
    assert (done.returncode, done.stdout) == (0, b"> 12+7=\n19\n\n")


def test_lines_of_standard_input_are_one_prompt() -> None:
    done = pipe(b"12+7=\n12+7=\n", "--json")
    (line,) = done.stdout.splitlines()
    assert set(json.loads(line)) == {"index", "id", "text", "token_ids", "finish_reason"}


def test_a_dash_stands_for_standard_input_among_other_prompts() -> None:
    assert pipe(b"12+7=\n", "1+1=", "-", "--quiet").stdout == b"2\n19\n"


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        (b"", (), "there is nothing to generate: give run.prompts or run.prompts_file"),
        (b"a", ("-", "-"), "the prompt - is given twice"),
        (b"\xff\xfe1\0", (), "standard input is not UTF-8: byte 0xff at 0"),
        (b"x" * (16 * 2**20 + 1), (), "more than 16,777,216 bytes"),
    ],
)
def test_what_standard_input_cannot_be_is_one_line(text: bytes, arguments: tuple[str, ...], expected: str) -> None:
    done = pipe(text, *arguments)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert expected in line


def test_standard_input_is_left_alone_where_there_are_prompts(write_config: WriteConfig) -> None:
    path = write_config(f"run:\n  prompts: [one]\n  {GREEDY}\n")
    for arguments in (["--config", str(path)], ["two"]):
        assert b"never" not in pipe(b"never", *arguments).stdout


def test_only_results_are_on_standard_output_and_quiet_leaves_standard_error_empty() -> None:
    done = pipe(b"", "12+7=", "sort 31425=")
    assert done.stdout == b"> 12+7=\n19\n\n> sort 31425=\n12345\n\n"
    assert b"KV blocks used" in done.stderr
    assert b"device: cpu" in done.stderr
    done = pipe(b"", "12+7=", "sort 31425=", "--quiet")
    assert (done.stdout, done.stderr) == (b"19\n12345\n", b"")


def test_json_has_a_line_for_each_prompt_with_log_probabilities_if_they_are_asked_for(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config("run:\n  prompts: [one, two]\n  sampling: {max_tokens: 2, logprobs: 1, ignore_eos: true}\n")
    assert main(["--config", str(path), "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    results = {line["index"]: line for line in map(json.loads, out.splitlines())}
    assert sorted(results) == [0, 1]
    assert all(len(result["logprobs"]) == 2 for result in results.values())
    assert err == ""


def test_a_prompt_that_fails_quietly_is_named_on_standard_error(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(f"run:\n  prompts: [good, {'x' * 300}]\n  {GREEDY}\n")
    assert main(["--config", str(path), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) >= 1
    assert "error: prompt 2: request 'line-1': the prompt has 300 tokens" in err


def test_flags_change_what_a_configuration_says(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(f"run:\n  prompts: [one]\n  {GREEDY}\n")
    assert main(["--config", str(path), "--device", "cpu", "--max-tokens", "7", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 7


class Terminal(io.StringIO):
    """Standard output that a person watches; every write is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written.append(text)
        return super().write(text)


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_single_text_comes_piece_by_piece_on_a_terminal(
    quiet: list[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout", terminal)
    flags = [
        "--model",
        str(tiny_model),
        "--set",
        "load_format=dummy",
        "--max-tokens",
        "9",
        "--ignore-eos",
        "--seed",
        "1",
    ]
    assert main(["generate", "a", *flags, *quiet]) == 0
    streamed = terminal.getvalue()
    assert len([piece for piece in terminal.written if piece.strip()]) > 4
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    terminal.truncate(0)
    terminal.seek(0)
    assert main(["generate", "a", *flags, *quiet]) == 0
    assert terminal.getvalue() == streamed, "the same as when it is printed at the end"


def test_a_single_prompt_that_fails_on_a_terminal_is_an_error(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["generate", "x" * 300, "--model", str(tiny_model), "--set", "load_format=dummy"]) == 2
    assert "error: request" in terminal.getvalue()
