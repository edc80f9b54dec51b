"""Standard streams that are closed, full or of another encoding; no memory, no folder, no docstrings."""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tinyvllm.cli.doctor
from tinyvllm.cli.main import main
from tinyvllm.errors import PluginError

WriteConfig = Callable[[str], Path]
COMMAND = [sys.executable, "-m", "tinyvllm"]
GENERATE = ["generate", "12+7=", "--device", "cpu", "--temperature", "0"]
CHANNEL_ERRORS = "standard output cannot be written: No space left on device; make room, or send it elsewhere"


def shell(redirection: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tinyvllm with a redirection of the shell's."""
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", *COMMAND, *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)


@pytest.mark.parametrize("arguments", [GENERATE, ["config", "schema"], ["--help"], ["kernels", "list"], ["doctor"]])
def test_a_full_standard_output_is_one_line_and_exit_code_5(arguments: list[str]) -> None:
    done = shell(">/dev/full", *arguments)
    assert (done.returncode, done.stderr) == (5, f"error: {CHANNEL_ERRORS}\n")


@pytest.mark.parametrize("arguments", [GENERATE, ["config", "schema"]])
def test_a_closed_standard_output_is_one_line(arguments: list[str]) -> None:
    done = shell(">&-", *arguments)
    expected = "error: standard output is closed; send it to a file or another program, or to /dev/null\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_a_closed_standard_output_is_no_matter_where_results_go_to_a_file(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    config = write_config("run: {prompts_file: in.jsonl, output: out.jsonl, sampling: {max_tokens: 2}}\n")
    for redirection in (">&-", ">&- 2>&-", ">&- 2>&- <&-"):
        assert shell(redirection, "--config", str(config)).returncode == 0
        (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
        assert json.loads(line)["index"] == 0, "nothing else was written to the descriptor of a closed stream"
        (tmp_path / "out.jsonl").unlink()


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_without_standard_error_results_are_the_same(redirection: str) -> None:
    done = shell(redirection, *GENERATE)
    assert (done.returncode, done.stdout) == (0, "> 12+7=\n19\n\n")
    assert shell(redirection, "foo").returncode == 2
    assert shell(redirection, "foo").stdout == ""


@pytest.mark.parametrize(
    "encoding", ["ascii", *[pytest.param(x, marks=pytest.mark.slow) for x in ("latin-1", "cp1252")]]
)
def test_what_standard_output_cannot_spell_is_escaped(encoding: str, tmp_path: Path) -> None:
    done = shell("", "generate", "Ω 12+7=", "--device", "cpu", "--temperature", "0", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("> \\u03a9 12+7=")
    (tmp_path / "in.jsonl").write_text('{"prompt": "12+7=", "id": "Ω"}\n')
    (tmp_path / "a.yaml").write_text("model: demo\nrun: {prompts_file: in.jsonl, sampling: {temperature: 0}}\n")
    done = shell("", "--config", str(tmp_path / "a.yaml"), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == "Ω", "JSON has its own way to escape"


def test_the_locale_c_without_utf_8_mode_is_no_error() -> None:
    done = shell("", *GENERATE, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stdout) == (0, "> 12+7=\n19\n\n")


@pytest.mark.parametrize("flags", [["-OO"], pytest.param(["-O"], marks=pytest.mark.slow)])
def test_python_may_strip_docstrings_and_assertions(flags: list[str]) -> None:
    for arguments in (["--version"], ["--help"], ["generate", "--help"], GENERATE):
        command = [sys.executable, *flags, "-m", "tinyvllm", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_current_folder_that_was_deleted_is_one_line(tmp_path: Path) -> None:
    program = "import os, sys; os.rmdir(os.getcwd()); from tinyvllm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-c", program, *GENERATE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path / "gone")
    expected = "error: the current folder has been deleted; change to another one\n"
    assert (done.returncode, done.stderr) == (2, expected)


@pytest.mark.parametrize("size_mib", [190, 300, *[pytest.param(n, marks=pytest.mark.slow) for n in (150, 230, 260)]])
def test_too_little_memory_is_one_line_and_exit_code_5(size_mib: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (size_mib * 2**20, size_mib * 2**20))

    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # whose threads take some hundred MiB otherwise
    done = subprocess.run(
        [*COMMAND, *GENERATE, "--set", "scheduler.max_num_seqs=4096"],
        capture_output=True, text=True, check=False, preexec_fn=limit, env=environment,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert re.fullmatch(r"error: .*(memory|no room).*\n", done.stderr)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        caused(PluginError("loader 'mine' failed"), MemoryError("of 2 GiB")),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        ImportError("x.so: failed to map segment from shared object"),
    ],
)
def test_memory_that_runs_out_anywhere_is_a_matter_of_capacity(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(tinyvllm.cli.doctor, "run", fail)
    assert main(["doctor"]) == 5
    assert capsys.readouterr().err.startswith("error: memory ran out")


def test_a_home_folder_that_there_is_not_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", "--plugin", "~nobody-of-this-name/mine.py"]) == 2
    assert capsys.readouterr().err.startswith("error: a path begins with ~, and there is no such home folder")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(tinyvllm.cli.doctor, "run", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["doctor"])


def test_an_interrupt_at_any_time_since_the_first_line_of_ours_is_exit_code_130() -> None:
    program = (
        "import sys; from tinyvllm.__main__ import main\n"
        "try:\n    print(flush=True)\n    code = main()\n"
        "except KeyboardInterrupt as error:\n    code = 1 if error.__traceback__.tb_next else 130  # 130: before main\n"
        "sys.exit(code)"
    )
    for wait_s in (0.0, 0.03, 0.1, 0.2, 0.3, 0.5):
        process = subprocess.Popen(
            [sys.executable, "-c", program, "generate", "Once upon a time", "--max-tokens", "400", "--ignore-eos"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode in (0, 130), err
        assert b"Traceback" not in err, f"after {wait_s} s"


def test_no_home_folder_and_no_cache_are_no_traceback(tmp_path: Path) -> None:
    """As a container with a numeric user has it: no HOME, no entry in the list of users."""
    program = (
        "import os, sys, pathlib\n"
        "def no_home(cls): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = classmethod(no_home)\n"
        "pathlib.Path.expanduser = lambda self: no_home(self) if str(self).startswith('~') else self\n"
        "from tinyvllm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    hidden = ("HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command: list[Any] = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    done = run("generate", "1+1=", "--model", "org/name")
    assert done.returncode == 3
    assert "this user has none; set HF_HUB_CACHE" in done.stderr
    done = run("doctor")
    assert done.returncode == 0, done.stderr
    assert "no home folder" in done.stderr


def test_doctor_says_whether_the_cache_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert f"{tmp_path}/tinyvllm can be written" in shell("", "doctor", XDG_CACHE_HOME=str(tmp_path)).stdout
    unwritable = shell("", "doctor", XDG_CACHE_HOME="/dev/null").stdout
    assert "/dev/null/tinyvllm cannot be written (Not a directory)" in unwritable


def test_doctor_says_how_many_threads_are_used() -> None:
    assert "CPU threads     1 for every product" in shell("", "doctor", OPENBLAS_NUM_THREADS="1").stdout
    assert "1 for small products, 2 for large ones" in shell("", "doctor", OPENBLAS_NUM_THREADS="2").stdout
