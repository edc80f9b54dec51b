"""Every fenced block of the documentation runs, or is read as what it says it is."""

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyvllm.cli.main import main
from tinyvllm.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# The two commands for a fresh clone: they make an environment and run these tests.
_FRESH_CLONE = "python3 -m venv .venv"
_SILENT = {"text", ""}
_RUN_EACH = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__')"
"""In one process, which imports the package once; no block sees another's names."""
_SLOW = ("--sanitize", "kernels bench")
"""In a block that takes long: it compiles with sanitizers, or times."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}:{self.language}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[2], match[3]))
    return found


def of(*languages: str) -> list[Block]:
    return [block for block in blocks() if block.language in languages]


def environment() -> dict[str, str]:
    """With this Python as ``python``."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def test_every_block_says_what_it_is() -> None:
    known = {"python", "bash", "yaml", "json", "toml", "cuda", *_SILENT}
    assert {block.language for block in blocks()} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    scripts = []
    for block in (block for block in of("python") if block.page == page):
        scripts.append(tmp_path / f"{page.stem} line {block.line}.py")
        scripts[-1].write_text("\n" * block.line + block.code)
    done = subprocess.run(
        [sys.executable, "-c", _RUN_EACH, *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page}\n{done.stderr}"


def bash_blocks() -> list[Any]:
    """All of them, those that take long marked as slow."""
    return [
        pytest.param(block, marks=pytest.mark.slow) if any(part in block.code for part in _SLOW) else block
        for block in of("bash")
    ]


@pytest.mark.parametrize("block", bash_blocks(), ids=str)
def test_bash_blocks_run_as_they_are(block: Block) -> None:
    if _FRESH_CLONE in block.code:
        assert subprocess.run(["bash", "-n"], input=block.code, text=True, check=False).returncode == 0
        return
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    expected = (0, 1) if "demo --verify" in block.code else (0,)  # whether it passes is another test's business
    assert done.returncode in expected, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_blocks_are_configurations_that_load(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "block.yaml"
    path.write_text(block.code)
    if "model:" not in block.code:
        assert yaml.safe_load(block.code) is not None
        return
    for reference in re.findall(r"\./(\w+)\.py", block.code):
        (tmp_path / f"{reference}.py").write_text(plugin_on(block.page, reference))
    load_config(path)


def plugin_on(page: Path, name: str) -> str:
    """The Python block of the page that registers the plugin ``name``."""
    registers = re.compile(rf'(Plugin|cuda_kernel)\("{name}"')
    (code,) = [block.code for block in of("python") if block.page == page and registers.search(block.code)]
    return code


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_blocks_are_json(block: Block) -> None:
    json.loads(block.code)


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_toml_blocks_are_toml(block: Block) -> None:
    tomllib.loads(block.code)


def test_the_plugin_of_the_documentation_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "reference" / "plugins.md"
    (tmp_path / "one_at_a_time.py").write_text(plugin_on(page, "one_at_a_time"))
    path = tmp_path / "a.yaml"
    path.write_text(
        "model: demo\nplugins: [./one_at_a_time.py]\nscheduler: {name: one_at_a_time, newest_first: true}\n"
        "run: {prompts: ['12+7=', 'sort 31425='], sampling: {temperature: 0, max_tokens: 16}}\n"
    )
    assert main(["--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\n19\n" in out
    assert "\n12345\n" in out


def test_the_report_of_the_documentation_is_the_one_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (expected,) = [block.code for block in of("text") if block.code.startswith("error: 3 problems")]
    lines = re.findall(r"^ +\d+ \| (.*)$", expected, re.MULTILINE)
    Path("my.yaml").write_text("\n".join(["model: demo", *lines]))
    assert main(["--config", "my.yaml"]) == 2
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
