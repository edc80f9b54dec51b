"""Every file in configs/ runs as its first lines say."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvllm.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = "llama-3.2-1b.yaml"
ANSWERS = {
    "12+7=": "19",
    "58+64=": "122",
    "3+99=": "102",
    "copy 31425=": "31425",
    "reverse 31425=": "52413",
    "sort 31425=": "12345",
}


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tinyvllm", "--config", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def printed(out: str) -> dict[str, str]:
    """Each prompt with its text."""
    return dict(re.findall(r"^> (.*)\n((?:.*\n)*?)\n(?=> |\Z)", out, re.MULTILINE))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_configuration_opens_with_what_it_shows_and_how_to_run_it(path: Path) -> None:
    comment = path.read_text().split("\n\n")[0]
    assert comment.startswith("# ")
    text = path.read_text()
    assert f"#   python -m tinyvllm --config configs/{path.name}\n" in text
    load_config(path)


@pytest.mark.parametrize("name", ["quickstart.yaml", "static.yaml", "continuous.yaml"])
def test_a_configuration_of_prompts_answers_each_of_them(name: str) -> None:
    done = run(CONFIGS / name)
    assert done.returncode == 0, done.stderr
    run_section = load_config(CONFIGS / name).config.run
    assert run_section is not None
    texts = printed(done.stdout)
    assert list(texts) == run_section.prompts
    for prompt, text in texts.items():
        if prompt in ANSWERS:
            assert text.strip() == ANSWERS[prompt]
        else:
            assert len(text) > 100, "a story"
    assert "KV blocks used" in done.stderr


def test_scarce_blocks_cause_preemptions_and_no_other_answers() -> None:
    scarce, ample = (
        run(CONFIGS / "continuous.yaml"),
        run(CONFIGS / "continuous.yaml", "--set", "cache.num_blocks_override="),
    )
    assert "preemptions" in scarce.stderr
    assert "preemptions" not in ample.stderr
    assert printed(scarce.stdout) == printed(ample.stdout)


def test_static_batching_needs_more_steps_than_continuous() -> None:
    static = run(CONFIGS / "static.yaml")
    continuous = run(CONFIGS / "static.yaml", "--set", "scheduler.name=continuous")
    steps = [int(re.findall(r"steps\s+│\s+(\d+)", done.stderr)[0]) for done in (static, continuous)]
    assert steps[0] > steps[1]


def test_sampling_draws_the_same_three_stories_every_time() -> None:
    first, second = run(CONFIGS / "sampling.yaml"), run(CONFIGS / "sampling.yaml", "--set", "scheduler.max_num_seqs=1")
    assert first.returncode == 0, first.stderr
    assert printed(first.stdout) == printed(second.stdout)
    stories = re.findall(r"^\[\d\] (.*)$", first.stdout, re.MULTILINE)
    assert len(set(stories)) == 3


def test_the_batch_file_gives_a_result_for_each_line(tmp_path: Path) -> None:
    for name in ("batch-file.yaml", "prompts.jsonl"):
        shutil.copy(CONFIGS / name, tmp_path / name)
    assert run(tmp_path / "batch-file.yaml").returncode == 0
    results = {line["index"]: line for line in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    lines = [json.loads(line) for line in (CONFIGS / "prompts.jsonl").read_text().splitlines()]
    assert sorted(results) == list(range(len(lines)))
    for index, line in enumerate(lines):
        assert results[index]["id"] == line.get("id")
        if line.get("prompt") in ANSWERS:
            assert results[index]["text"] == ANSWERS[line["prompt"]]


def test_the_real_checkpoint_runs_or_says_what_to_put_where() -> None:
    folder = (CONFIGS / "../models/Llama-3.2-1B-Instruct").resolve()
    done = run(CONFIGS / LLAMA, "--set", "run.sampling.max_tokens=2")
    if folder.is_dir():
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "models/Llama-3.2-1B-Instruct: there is no such folder; put " in done.stderr
