"""Batch files as the world writes them, from wherever they come, and outputs that are no files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinyvllm.cli.main import main
from tinyvllm.errors import CapacityError, ConfigError
from tinyvllm.run.jobs import MAX_LINE_BYTES
from tinyvllm.run.seal import seal_file

WriteConfig = Callable[[str], Path]
SAMPLING = "sampling: {temperature: 0.0, max_tokens: 2, ignore_eos: true}"
TEXT = f"run:\n  prompts_file: in.jsonl\n  output: out.jsonl\n  {SAMPLING}\n"
COMMAND = [sys.executable, "-m", "tinyvllm"]


@pytest.fixture
def config(write_config: WriteConfig) -> Path:
    return write_config(TEXT)


def results(folder: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().split("\n") if line]
    return {line["index"]: line for line in lines}


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a"}\n{"prompt": "b"}\n',
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b"}\n',
        b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n',
        b'{"prompt": "a"}\n{"prompt": "b"}',
        b'{"prompt": "a"}\n  {"prompt": "b"}  \n\n \r\n\t\n',
        '{"prompt": "a"}\n{"prompt": "b", "id": "\u2028\x85"}\n'.encode(),
        b'{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n',  # results are told apart by their index
    ],
    ids=["plain", "mark", "CRLF", "no end", "blank", "other line ends", "one id twice"],
)
def test_lines_are_read_as_they_are_written_by_all_kinds_of_programs(
    config: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    assert main(["--config", str(config)]) == 0
    assert sorted(results(tmp_path)) == [0, 1]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16 without a mark"),
        ("utf-16-be", "UTF-16 without a mark"),
        ("utf-32", "UTF-32"),
    ],
)
def test_another_encoding_is_named_with_the_command_that_converts_it(
    config: Path, tmp_path: Path, encoding: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_bytes('{"prompt": "a"}\n'.encode(encoding))
    assert main(["--config", str(config)]) == 2
    err = capsys.readouterr().err
    assert f"in.jsonl:1: is {name}; lines must be UTF-8: iconv -f UTF-" in err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_compressed_file_is_named(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\x1f\x8b\x08\x00")
    assert main(["--config", str(config)]) == 2
    assert "is compressed by gzip" in capsys.readouterr().err


def test_a_line_that_is_too_long_spoils_only_itself(config: Path, tmp_path: Path) -> None:
    long = json.dumps({"prompt": "x" * MAX_LINE_BYTES})
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "a"}}\n{long}\n{{"prompt": "b"}}\n')
    assert main(["--config", str(config)]) == 2
    found = results(tmp_path)
    assert "longer than 16,777,216 bytes" in found[1]["error"]
    assert all("text" in found[index] for index in (0, 2))


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "a", "sampling": {"max_tokens": 1e999}}',
        '{"prompt": "a", "sampling": {"temperature": NaN}}',
        f'{{"prompt": "a", "sampling": {{"seed": {10**400}}}}}',
        f'{{"prompt_token_ids": [{10**400}]}}',
        '{"prompt_token_ids": [3000000000]}',
        '{"prompt": "a", "sampling": {"max_tokens": -1}}',
        '{"prompt": "a", "id": 1.5}',
        '{"messages": [{"role": "user"}], "id": "x"}',
        '{"messages": [{"role": "user", "content": "' + "x" * 5000 + '"}]}',
        '{"a": ' * 2000 + "1" + "}" * 2000,
        "{" + '"' * 999,
        '{"prompt": null, "messages": null}',
        '{"prompt": "a", "sampling": {"stop": ["\\ud83d"]}}',
        '"\\ud83d"',
    ],
)
def test_whatever_is_wrong_with_one_line_is_its_own_result_and_the_run_goes_on(
    config: Path, tmp_path: Path, line: str
) -> None:
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "b"}}\n')
    assert main(["--config", str(config)]) == 2
    found = results(tmp_path)
    assert len(found[1]["error"]) < 1000
    assert all("text" in found[index] for index in (0, 2))
    assert main(["--config", str(config)]) == 2, "when it is gone on with as well"
    assert results(tmp_path) == found


def run(config: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, "--config", str(config), *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=60, **options)


LINES = b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n'


@pytest.mark.parametrize(
    ("name", "is_pipe"),
    [
        ("/dev/stdin", True),
        ("/dev/fd/0", False),
        pytest.param("/dev/fd/0", True, marks=pytest.mark.slow),
        pytest.param("/dev/stdin", False, marks=pytest.mark.slow),
    ],
)
def test_standard_input_is_read_to_its_end(config: Path, tmp_path: Path, name: str, is_pipe: bool) -> None:
    (tmp_path / "there.jsonl").write_bytes(LINES)
    with (tmp_path / "there.jsonl").open("rb") as file:
        given: dict[str, Any] = {"input": LINES} if is_pipe else {"stdin": file}
        done = run(config, "--set", f"run.prompts_file={name}", **given)
    assert done.returncode == 0, done.stderr
    assert sorted(results(tmp_path)) == [0, 1, 2]


def test_a_run_that_read_a_pipe_goes_on_with_the_same_lines_and_refuses_others(config: Path, tmp_path: Path) -> None:
    arguments = ["--set", "run.prompts_file=/dev/stdin"]
    assert run(config, *arguments, input=LINES).returncode == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").write_bytes(whole[: len(whole) // 2])
    assert run(config, *arguments, input=LINES).returncode == 0
    assert sorted(results(tmp_path)) == [0, 1, 2]
    done = run(config, *arguments, input=LINES.replace(b"a", b"x"))
    assert done.returncode == 2
    assert b"standard input has changed since this file was begun" in done.stderr


def test_a_socket_is_read_as_standard_input(config: Path, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(LINES)
        ours.shutdown(socket.SHUT_WR)
        done = run(config, "--set", "run.prompts_file=/dev/stdin", stdin=theirs)
    assert done.returncode == 0, done.stderr
    assert sorted(results(tmp_path)) == [0, 1, 2]


def test_a_named_pipe_is_waited_for_and_that_is_said(config: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.jsonl")
    writer = threading.Thread(target=(tmp_path / "in.jsonl").write_bytes, args=(LINES,))
    writer.start()
    done = run(config)
    writer.join()
    assert done.returncode == 0, done.stderr
    assert b"waiting for a program that writes to the pipe" in done.stderr
    assert sorted(results(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev", "missing", "a\0b"])
def test_what_is_neither_file_nor_pipe_is_refused_as_an_input(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run.prompts_file: cannot read"):
        seal_file(Path(name))


def test_a_pipe_that_there_is_no_room_for_is_a_matter_of_capacity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(LINES,))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    writer.start()
    with pytest.raises(CapacityError, match=r"cannot be copied: No space left on device; make room in .* TMPDIR"):
        seal_file(tmp_path / "pipe")
    writer.join()


@pytest.mark.parametrize(
    "name",
    [
        "/dev/null",
        "PIPE",
        "FOLDER",
        *[pytest.param(f"/dev/{x}", marks=pytest.mark.slow) for x in ("full", "zero", "stdout")],
    ],
)
def test_what_is_no_file_is_refused_as_an_output_and_nothing_is_left_beside_it(
    config: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(LINES)
    os.mkfifo(tmp_path / "pipe")
    path = {"PIPE": str(tmp_path / "pipe"), "FOLDER": str(tmp_path)}.get(name, name)
    before = set(tmp_path.iterdir())
    done = run(config, "--set", f"run.output={path}")
    assert done.returncode == 2
    assert f"error: run.output: cannot write {path}".encode() in done.stderr
    assert done.stdout == b""
    assert set(tmp_path.iterdir()) == before
    assert not Path(f"{path}.run.json").exists()


def test_standard_output_that_is_a_file_is_an_output_like_any_other(config: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(LINES)
    with (tmp_path / "out.jsonl").open("wb") as file:
        command = [*COMMAND, "--config", str(config), "--set", "run.output=/dev/stdout"]
        assert subprocess.run(command, stdout=file, stderr=subprocess.PIPE, check=False).returncode == 0
    assert sorted(results(tmp_path)) == [0, 1, 2]
    assert (tmp_path / "out.jsonl.run.json").exists()


@pytest.mark.parametrize("content", [b"model: demo", b"{}", b"\0" * 2**17])
def test_a_file_of_something_else_is_not_cut_though_its_last_line_has_no_end(
    config: Path, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_bytes(LINES)
    (tmp_path / "out.jsonl").write_bytes(content)
    assert main(["--config", str(config)]) == 2
    assert "out.jsonl:1: not a line of results" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_bytes() == content


def test_zeros_that_a_crash_left_at_the_end_are_cut_off(config: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(LINES)
    assert main(["--config", str(config)]) == 0
    found = results(tmp_path)
    with (tmp_path / "out.jsonl").open("ab") as file:
        file.write(bytes(100))
    assert main(["--config", str(config)]) == 0
    assert results(tmp_path) == found


def test_input_and_output_are_not_the_same_file(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_bytes(LINES)
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    assert main(["--config", str(config), "--set", f"run.output={tmp_path}/link.jsonl"]) == 2
    assert "is also run.prompts_file; name another output" in capsys.readouterr().err
    assert (tmp_path / "in.jsonl").read_bytes() == LINES


@pytest.mark.parametrize("note", ["[1]", '{"input": 3}', "[" * 10**5, '{"input": {"num_bytes": -1}}'])
def test_a_note_that_is_damaged_is_no_traceback(config: Path, tmp_path: Path, note: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(LINES)
    assert main(["--config", str(config)]) == 0
    (tmp_path / "out.jsonl.run.json").write_text(note)
    assert main(["--config", str(config)]) in (0, 2)


def test_lines_that_are_added_while_a_run_goes_on_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(LINES)
    with seal_file(tmp_path / "in.jsonl") as sealed:
        with (tmp_path / "in.jsonl").open("ab") as file:
            file.write(LINES)
        assert [index for index, _ in sealed.lines()] == [0, 1, 2]
        (tmp_path / "in.jsonl").write_bytes(b"")
        with pytest.raises(ConfigError, match=r"in\.jsonl has become shorter"):
            list(sealed.lines())
