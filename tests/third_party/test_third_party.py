"""A plugin of somebody else's: a package installed with pip, and a single local file, both chosen from YAML."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "shortest_first"
MAX_LINES = 60
PROMPTS = ["a long prompt of some length", "short", "a prompt"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed by pip into a folder of its own."""
    source = tmp_path_factory.mktemp("source") / "shortest_first"
    shutil.copytree(PACKAGE, source)  # building writes beside the source
    target = tmp_path_factory.mktemp("target")
    flags = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, "--target", target, source], check=True)
    return target


def tinyvllm(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else dict(os.environ)
    command = [sys.executable, "-m", "tinyvllm", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def order_of_results(
    folder: Path, model: Path, scheduler: str, path: Path | None = None, plugins: str = ""
) -> list[int]:
    """In which order three prompts end when one runs at a time."""
    config = folder / "run.yaml"
    config.write_text(
        f"model: {model}\nload_format: dummy\n{plugins}scheduler: {{{scheduler}, max_num_seqs: 1}}\n"
        f"run: {{prompts: {json.dumps(PROMPTS)}, sampling: {{max_tokens: 4, ignore_eos: true}}, output: out.jsonl}}\n"
    )
    done = tinyvllm("--config", str(config), path=path)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["index"] for line in (folder / "out.jsonl").read_text().splitlines()]


def test_the_whole_package_has_at_most_sixty_lines() -> None:
    files = [PACKAGE / "pyproject.toml", *PACKAGE.glob("*.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= MAX_LINES


def test_an_installed_package_is_listed(installed: Path) -> None:
    listed = tinyvllm("plugins", "list", path=installed).stdout
    (line,) = [line for line in listed.splitlines() if "shortest_first" in line]
    assert line.split() == ["scheduler", "shortest_first", "tinyvllm-shortest-first", "1.0", "v1", "ready"]


def test_an_installed_package_is_chosen_from_yaml_with_its_option(
    installed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shortest = order_of_results(tmp_path / "a", tiny_model, "name: shortest_first", installed)
    longest = order_of_results(tmp_path / "b", tiny_model, "name: shortest_first, longest: true", installed)
    assert (shortest, longest) == ([1, 2, 0], [0, 2, 1])


def test_a_misspelt_option_of_the_package_is_an_error_with_its_line(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: demo\nscheduler:\n  name: shortest_first\n  longst: true\n")
    done = tinyvllm("config", "show", "--config", str(config), path=installed)
    assert done.returncode == 2
    assert f"{config}:4: unknown key scheduler.longst; did you mean 'longest'?" in done.stderr
    config.write_text("model: demo\nscheduler:\n  name: shortest_first\n  longest: 1\n")
    done = tinyvllm("config", "show", "--config", str(config), path=installed)
    assert f"{config}:4: scheduler.longest must be true or false, got 1" in done.stderr


def test_without_the_package_its_name_is_unknown(tmp_path: Path) -> None:
    done = tinyvllm("config", "show", "--set", "scheduler.name=shortest_first")
    assert done.returncode == 2
    assert "there is no scheduler plugin 'shortest_first'" in done.stderr


def test_a_single_local_file_is_chosen_from_yaml(tiny_model: Path, tmp_path: Path) -> None:
    source = (PACKAGE / "tinyvllm_shortest_first.py").read_text()
    (tmp_path / "my_scheduler.py").write_text(source.replace('"shortest_first"', '"mine"'))
    plugins = "plugins: [./my_scheduler.py]\n"
    assert order_of_results(tmp_path, tiny_model, "name: mine", plugins=plugins) == [1, 2, 0]


def test_a_local_file_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    plugin = tmp_path / "my_scheduler.py"
    plugin.write_text((PACKAGE / "tinyvllm_shortest_first.py").read_text())
    done = tinyvllm("config", "show", "--plugin", str(plugin), "--set", "scheduler.name=shortest_first")
    assert done.returncode == 0, done.stderr
    assert "longest: false" in done.stdout
    listed = tinyvllm("plugins", "list", "--plugin", str(plugin)).stdout
    assert "shortest_first" in listed
