"""The scripts that time kernels run to their end where there is no GPU, on a model of a few kilobytes."""

from pathlib import Path

import pytest

from tests.engine.tiny import write_checkpoint
from tests.kernels import bench_attention, bench_step


def test_the_attention_kernels_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--batch-size", "2", "--context-len", "40", "--prefill", "20", "--heads", "4", "2", "16"]
    bench_attention.main(["--device", "emulator", *sizes, "--num-layers", "2", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["decode", "prefill"]


def test_every_launch_of_a_decode_step_is_found_and_can_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "model", torch_dtype="bfloat16", max_position_embeddings=1024)
    options = ["--device", "emulator", "--model", str(model), "--context-len", "20", "--repeats", "1"]
    bench_step.main([*options, "--batch-size", "1", "3"])
    out = capsys.readouterr().out
    assert out.count("sequences at context 20") == 2
    assert out.count("all in one graph") == 2
    counts = [line.split() for line in out.splitlines() if line.lstrip().startswith("attention_decode")]
    assert [line[1] for line in counts] == ["2", "2"]  # one a layer
