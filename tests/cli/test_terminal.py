"""What a person sees: readable results, no remains of a bar, no escape codes that the terminal does not want."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.terminal import run_in_terminal

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
COLOUR = re.compile(r"\x1b\[[\d;]*\b(3[0-8]|4[0-8]|9\d|10\d)\b[\d;]*m")


@pytest.mark.parametrize("columns", [60, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "env", [{}, {"NO_COLOR": "1"}, {"LC_ALL": "C"}, {"TERM": "dumb"}], ids=["plain", "no colour", "C", "dumb"]
)
def test_the_command_of_the_readme_ends_with_results_and_a_table_and_no_bar(
    columns: int, env: Mapping[str, str]
) -> None:
    session = run_in_terminal("--config", QUICKSTART, columns=columns, env=env)
    assert session.returncode == 0
    lines = session.screen.split("\n")
    assert lines[:3] == ["> 12+7=", "19", ""]
    assert [lines[lines.index(f"> {prompt}=") + 1] for prompt in ("58+64", "sort 31425")] == ["122", "12345"]
    assert "generating" not in session.screen
    assert "tok/s" not in session.screen
    assert max(map(len, lines)) <= columns
    assert lines[-2].startswith("device: ")
    assert lines[-1] == "", "the next prompt of the shell has a line of its own"
    assert session.raw.count("\x1b[?25l") == session.raw.count("\x1b[?25h"), "the cursor is shown again"
    assert "\x1b" not in session.raw or "TERM" not in env
    assert not COLOUR.search(session.raw) or not env.keys() & {"NO_COLOR", "TERM"}


def test_a_bar_is_shown_meanwhile() -> None:
    session = run_in_terminal("--config", QUICKSTART)
    assert re.search(r"\d+ tok/s", session.raw)


def test_results_go_to_the_file_that_was_named_though_a_bar_is_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "12+7="}\n' * 40)
    (tmp_path / "a.yaml").write_text("model: demo\nrun: {prompts_file: in.jsonl, sampling: {temperature: 0}}\n")
    with tempfile.TemporaryFile() as out:
        session = run_in_terminal("--config", str(tmp_path / "a.yaml"), stdout=out.fileno())
        out.seek(0)
        assert out.read().count(b'"text": "19"') == 40
    assert "19" not in re.sub(r"[│─┌┐└┘].*", "", session.screen)
    assert "generating" in session.raw
    assert "generating" not in session.screen


def test_a_single_prompt_is_shown_with_its_text_and_no_bar() -> None:
    session = run_in_terminal("generate", "12+7=", "--temperature", "0", "--device", "cpu")
    assert session.screen.split("\n")[:3] == ["> 12+7=", "19", ""]
    assert "generating" not in session.raw


def test_quiet_leaves_the_text_alone_on_the_terminal() -> None:
    session = run_in_terminal("generate", "12+7=", "--temperature", "0", "--quiet")
    assert session.raw == "19\r\n"


def test_what_ended_at_max_tokens_is_said() -> None:
    session = run_in_terminal("generate", "Once upon a time", "--max-tokens", "5", "--temperature", "0")
    assert "1 text ended at max_tokens = 5; --max-tokens N allows more" in session.screen


def test_a_failed_prompt_leaves_no_bar() -> None:
    session = run_in_terminal("generate", "x" * 600, "12+7=", "--device", "cpu", "--temperature", "0")
    assert session.returncode == 2
    assert "generating" not in session.screen
    assert "error: " in session.screen
    assert "\n19\n" in session.screen
