"""Batch files: results as they end, one bad line spoils only itself, and a killed run goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinyvllm.cli.main import main

WriteConfig = Callable[[str], Path]
TEXT = """\
scheduler: {max_num_seqs: 2}
run:
  prompts_file: in.jsonl
  output: out.jsonl
  sampling: {temperature: 1.0, max_tokens: 6, ignore_eos: true}
"""
NUM_LINES = 12
BY_PRIORITY = """\
import numpy as np
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin
from tinyvllm.packing import pack


class ByPriority:
    def __init__(self, context):
        pass

    def schedule(self, view):
        waiting = view.waiting[np.argsort(view.priority[view.waiting], kind="stable")]
        return pack(view, view.running, waiting)


@hookimpl
def register_schedulers():
    return [Plugin("by_priority", ByPriority)]
"""


@pytest.fixture
def config(write_config: WriteConfig, tmp_path: Path) -> Path:
    lines = [json.dumps({"id": f"id-{i}", "prompt": f"prompt {i}"}) for i in range(NUM_LINES)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return write_config(TEXT)


def results(folder: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    by_index = {line["index"]: line for line in lines}
    assert len(by_index) == len(lines), "a line is there twice"
    return by_index


def test_every_line_has_one_result_under_its_index_and_id(config: Path, tmp_path: Path) -> None:
    assert main(["--config", str(config)]) == 0
    found = results(tmp_path)
    assert sorted(found) == list(range(NUM_LINES))
    assert all(set(line) == {"index", "id", "text", "token_ids", "finish_reason"} for line in found.values())
    assert all(found[i]["id"] == f"id-{i}" and len(found[i]["token_ids"]) == 6 for i in found)


def test_a_second_run_does_nothing_again(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config)]) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    assert main(["--config", str(config)]) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert f"{NUM_LINES} results in" in capsys.readouterr().err


def test_an_interruption_at_any_byte_changes_no_result(config: Path, tmp_path: Path) -> None:
    assert main(["--config", str(config)]) == 0
    whole, expected = (tmp_path / "out.jsonl").read_bytes(), results(tmp_path)
    for cut in range(0, len(whole), len(whole) // 9 or 1):
        (tmp_path / "out.jsonl").write_bytes(whole[:cut])
        assert main(["--config", str(config)]) == 0
        assert results(tmp_path) == expected, f"cut at byte {cut}"


def test_a_run_that_is_killed_goes_on_with_no_line_lost_or_doubled(config: Path, tmp_path: Path) -> None:
    num_lines = 300
    lines = [json.dumps({"prompt": f"prompt {i}"}) for i in range(num_lines)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-m", "tinyvllm", "--config", str(config)]
    out = tmp_path / "out.jsonl"
    for kill in range(3):
        before = out.stat().st_size if out.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if out.exists() and out.stat().st_size > before + 2000:
                break
            time.sleep(0.002)
        assert process.poll() is None, f"it ended before kill {kill}"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    interrupted = len(out.read_bytes().splitlines())
    assert 0 < interrupted < num_lines
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert sorted(results(tmp_path)) == list(range(num_lines))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("not json", "the line is not JSON: Expecting value at character 1"),
        ("[1]", 'the line must be an object such as {"prompt": "12+7="}'),
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' is given twice"),
        ('{"promt": "a"}', "unknown key 'promt'; did you mean 'prompt'?"),
        ("{}", "the line must have one of prompt, prompt_token_ids, messages; got none of them"),
        ('{"prompt": "a", "messages": []}', "got prompt and messages"),
        ('{"prompt": 4}', "prompt must be a string, got int"),
        ('{"prompt_token_ids": [1, "x"]}', "prompt_token_ids[1] must be an integer"),
        ('{"prompt_token_ids": [999]}', "token 999 in the prompt, but the last of the vocabulary is 258"),
        ('{"messages": "hi"}', "messages must be a list"),
        ('{"prompt": "a", "id": [1]}', "id must be text or a whole number"),
        ('{"prompt": "a", "sampling": 4}', "sampling must be a mapping"),
        ('{"prompt": "a", "priority": "high"}', "priority must be"),
        ('{"prompt": "a", "priority": 4294967296}', "priority must be"),
        ('{"prompt": "a", "sampling": {"top_p": 2}}', "sampling.top_p must be"),
        ('{"prompt": "a", "sampling": {"top": 2}}', "'top' is not a field of SamplingParams"),
        ("[" * 100_000, "the line is not JSON"),
        ('{"prompt": "\\ud800"}', "the line has a lone surrogate, '\\ud800'"),
    ],
)
def test_a_bad_line_spoils_only_itself(
    write_config: WriteConfig, tmp_path: Path, line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "good"}}\n{line}\n{{"prompt": "also good"}}\n')
    assert main(["--config", str(write_config(TEXT))]) == 2
    found = results(tmp_path)
    assert set(found[1]) == {"index", "id", "error"}
    assert expected in found[1]["error"]
    assert all(len(found[i]["token_ids"]) == 6 for i in (0, 2))
    assert capsys.readouterr().err.endswith('\n1 of 3 prompts could not be served; see "error" in out.jsonl\n')
    assert main(["--config", str(tmp_path / "run.yaml")]) == 2, "a bad line is still a bad line when nothing is left"


def test_bytes_that_are_no_text_spoil_only_their_line(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "\xff"}\n{"prompt": "good"}')
    assert main(["--config", str(write_config(TEXT))]) == 2
    found = results(tmp_path)
    assert found[0]["error"].startswith("the line is not UTF-8")
    assert len(found[1]["token_ids"]) == 6


def test_lines_may_be_token_ids_conversations_or_have_their_own_sampling(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    lines = [
        '{"prompt_token_ids": [1, 2, 3], "sampling": {"max_tokens": 2}}',
        '{"messages": [{"role": "user", "content": "hi"}]}',
        '{"prompt": "a", "sampling": {"n": 2}}',
        "",
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert main(["--config", str(write_config(TEXT))]) == 0
    found = results(tmp_path)
    assert [len(found[i]["token_ids"]) for i in (0, 1, 2)] == [2, 6, 6]
    assert found[2]["outputs"][0]["text"] == found[2]["text"]
    assert len(found[2]["outputs"]) == 2


def test_log_probabilities_that_were_asked_for_are_in_the_results(write_config: WriteConfig, tmp_path: Path) -> None:
    sampling = {"max_tokens": 2, "n": 2, "logprobs": 1, "prompt_logprobs": 0}
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt_token_ids": [1, 2, 3], "sampling": sampling}))
    assert main(["--config", str(write_config(TEXT))]) == 0
    result = results(tmp_path)[0]
    assert [each if each is None else list(each) for each in result["prompt_logprobs"]] == [None, ["2"], ["3"]]
    for completion in result["outputs"]:
        chosen = [each[str(token)] for each, token in zip(completion["logprobs"], completion["token_ids"], strict=True)]
        assert completion["cumulative_logprob"] == pytest.approx(sum(each["logprob"] for each in chosen))
        assert all(set(each) == {"logprob", "rank", "decoded_token"} for each in chosen)


def test_blank_lines_have_a_number_but_no_result(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('\n{"prompt": "a"}\n\n   \n{"prompt": "b"}\n')
    assert main(["--config", str(write_config(TEXT))]) == 0
    assert sorted(results(tmp_path)) == [1, 4]


def refusal(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["--config", str(config), *arguments]) == 2
    return capsys.readouterr().err


def test_an_input_that_changed_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config)]) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    text = (tmp_path / "in.jsonl").read_text()
    (tmp_path / "in.jsonl").write_text(text.replace("prompt 3", "prompt x"))
    assert "in.jsonl has changed since this file was begun; move out.jsonl away" in refusal(config, capsys)
    (tmp_path / "in.jsonl").write_text(text.splitlines(keepends=True)[0])
    assert "it belongs to another input" in refusal(config, capsys)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_an_input_that_grew_is_gone_on_with(config: Path, tmp_path: Path) -> None:
    assert main(["--config", str(config)]) == 0
    before = results(tmp_path)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"prompt": "one more"}\n')
    assert main(["--config", str(config)]) == 0
    assert results(tmp_path) == {**before, NUM_LINES: results(tmp_path)[NUM_LINES]}


def test_a_last_line_that_was_continued_is_a_change(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(TEXT)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}')
    assert main(["--config", str(config)]) == 0
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}, "b"')
    assert "has changed" in refusal(config, capsys)


def test_other_sampling_is_not_mixed_in(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config)]) == 0
    message = refusal(config, capsys, "--set", "run.sampling.max_tokens=3")
    assert 'was begun with sampling {"temperature": 1.0, "max_tokens": 6, "ignore_eos": true}' in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hello\n", "out.jsonl:1: not a line of results (not JSON)"),
        ('{"a": 1}\n', "out.jsonl:1: not a line of results (no index)"),
        ('{"index": 0}\n{"index": 0}\n', "out.jsonl:2: a second result of index 0"),
        ('{"index": 12}\n', "out.jsonl:1: a result of index 12, but in.jsonl has 12 lines"),
        ('{"index": true}\n', "out.jsonl:1: not a line of results (no index)"),
    ],
)
def test_a_file_that_is_no_result_file_is_left_alone(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    (tmp_path / "out.jsonl").write_text(content)
    assert expected in refusal(config, capsys)
    assert (tmp_path / "out.jsonl").read_text() == content


def test_files_that_cannot_be_opened_are_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "run.output: cannot write" in refusal(config, capsys, "--set", f"run.output={tmp_path}/no/such/out.jsonl")
    (tmp_path / "in.jsonl").unlink()
    assert "run.prompts_file: cannot read" in refusal(config, capsys)


def test_two_runs_do_not_write_one_file(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "out.jsonl").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another run is writing this file" in refusal(config, capsys)
    assert main(["--config", str(config)]) == 0


def test_an_empty_input_gives_an_empty_output(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    assert main(["--config", str(write_config(TEXT))]) == 0
    assert results(tmp_path) == {}


def test_the_priority_of_a_line_reaches_the_scheduler(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "by_priority.py").write_text(BY_PRIORITY)
    lines = [json.dumps({"prompt": "a", "priority": priority}) for priority in (5, 1, 3)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    text = TEXT.replace("{max_num_seqs: 2}", "{name: by_priority, max_num_seqs: 1}")
    assert main(["--config", str(write_config(f"plugins: [./by_priority.py]\n{text}"))]) == 0
    assert list(results(tmp_path)) == [1, 2, 0]
