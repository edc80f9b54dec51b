"""The scripts that time kernels run to their end where there is no GPU, on a model of a few kilobytes."""

from pathlib import Path

import pytest

from tests.engine.tiny import write_checkpoint
from tinyvllm.bench.device import attention, decode_chain, decode_step, emulator, sampling


def test_the_attention_kernels_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--batch-size", "2", "--context-len", "40", "--prefill", "20", "--heads", "4", "2", "16"]
    attention.main(["--device", "emulator", *sizes, "--num-layers", "2", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["decode", "prefill"]


def test_every_launch_of_a_decode_step_is_found_and_can_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "model", torch_dtype="bfloat16", max_position_embeddings=1024)
    options = ["--device", "emulator", "--model", str(model), "--context-len", "20", "--repeats", "1"]
    decode_step.main([*options, "--batch-size", "1", "3"])
    out = capsys.readouterr().out
    assert out.count("sequences at context 20") == 2
    assert out.count("all in one graph") == 2
    counts = [line.split() for line in out.splitlines() if line.lstrip().startswith("attention_decode")]
    assert [line[1] for line in counts] == ["2", "2"]  # one a layer


def test_every_kernel_of_a_chain_is_timed_by_itself_and_all_together(capsys: pytest.CaptureFixture[str]) -> None:
    decode_chain.main(["--device", "emulator", "--tiny", "--rows", "3", "--replays", "1", "--rounds", "1"])
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:]]
    assert lines == ["qkv", "o", "gate_up", "down", "lm_head", "chain"]


def test_every_cut_and_list_of_log_probabilities_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--rows", "2", "--sigma", "4", "--vocab-size", "300", "--calls", "1", "--logprobs", "2", "--repeats", "1"]
    sampling.main(["--device", "emulator", *sizes])
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert [name for name in (*sampling.CUTS, "logprobs 2") if f"  {name}: " not in line] == []


@pytest.mark.slow
def test_what_the_emulator_costs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    emulator.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["s", "s", "ms", "ns", "us"]
