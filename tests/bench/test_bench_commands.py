"""The commands: what they ask of the engine, what they print and write."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny import write_checkpoint
from tinyvllm.bench.roofline import Machine
from tinyvllm.cli.main import main
from tinyvllm.devices.emulator.device import EmulatorDevice

REQUIRED = {
    "ms_per_token",
    "tokens_per_s",
    "fraction_of_roofline",
    "bandwidth",
    "matrix_rate",
    "host_us_per_step",
}


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes seconds and is not what is tested."""
    monkeypatch.setattr("tinyvllm.bench.roofline.measure", lambda device: Machine(1e10, 1e11, "NVIDIA H200"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", torch_dtype="bfloat16", max_position_embeddings=2048)


def bench(model: Path, tmp_path: Path, *arguments: str, device: str = "cpu") -> list[dict[str, Any]]:
    path = tmp_path / "found.json"
    options = ["--model", str(model), "--device", device, "--output-json", str(path)]
    assert main(["bench", arguments[0], *options, *arguments[1:]]) == 0
    results: list[dict[str, Any]] = json.loads(path.read_text())
    return results


def test_latency_makes_room_for_the_shape(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--batch-size", "1", "70", "--input-len", "8", "--output-len", "6", "--repeats", "1"]
    results = bench(model, tmp_path, "latency", *shape)
    assert [result["batch_size"] for result in results] == [1, 70]  # max_num_seqs is 64 otherwise
    assert set(results[0]) >= REQUIRED
    assert results[0]["fraction_of_datasheet"] > 0
    assert "fraction_of_roofline" in capsys.readouterr().out


def test_what_is_set_wins_and_a_batch_that_cannot_run_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "latency", "--model", str(model), "--device", "cpu", "--batch-size", "8"]
    assert main([*arguments, "--set", "scheduler.max_num_seqs=4"]) == 2
    assert "--batch-size 8 is more than scheduler.max_num_seqs, which is 4" in capsys.readouterr().err


def test_throughput_writes_what_is_asked_for(model: Path, tmp_path: Path) -> None:
    (result,) = bench(model, tmp_path, "throughput", "--num-prompts", "3", "--input-len", "5", "--output-len", "4")
    assert set(result) >= REQUIRED
    assert (result["num_requests"], result["output_tokens"]) == (3, 12)


def test_the_offline_workload_runs_256_sequences_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int] = {}

    def stop(llm: Any, machine: Machine, jobs: list[Any], **_: Any) -> None:
        asked.update(jobs=len(jobs), seqs=llm.config.scheduler.max_num_seqs, length=llm.config.max_model_len)
        raise KeyboardInterrupt

    monkeypatch.setattr("tinyvllm.bench.throughput.measure_throughput", stop)
    arguments = ["bench", "throughput", "--workload", "offline256", "--model", str(model), "--device", "cpu"]
    assert main(arguments) == 130
    assert asked == {"jobs": 256, "seqs": 256, "length": 2048}


def test_prefill_computes_the_prompt_in_one_step(model: Path, tmp_path: Path) -> None:
    results = bench(model, tmp_path, "prefill", "--input-len", "20", "300", "--repeats", "2")
    assert [(result["input_len"], result["num_steps"]) for result in results] == [(20, 1), (300, 1)]


def test_peers_that_cannot_run_on_this_machine_are_reported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if torch.cuda.is_available():
        pytest.skip("they can")
    # A device with a clock is taken for a GPU, and so torch is asked for one.
    monkeypatch.setattr(EmulatorDevice, "time_us", lambda *_, **__: 1.0, raising=False)
    shape = ["--batch-size", "2", "--input-len", "6", "--output-len", "5", "--repeats", "1"]
    peers = ["--peer", "torch-loop", "transformers"]
    (result,) = bench(model, tmp_path, "latency", *shape, *peers, device="emulator")
    assert result["ms_per_token"] > 0
    assert [peer["peer"] for peer in result["peers"]] == ["torch-loop", "transformers"]
    assert all(peer["error"] and peer["ms_per_token"] is None for peer in result["peers"])
    assert "peer torch-loop failed: " in capsys.readouterr().out


@pytest.mark.parametrize("peer", ["torch-loop", "transformers"])
def test_a_peer_that_is_not_installed_is_one_clear_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], peer: str
) -> None:
    for name in ("torch", "transformers", "tinyvllm.bench.peers.torch_loop"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["bench", "latency", "--model", str(model), "--device", "cpu", "--peer", peer]) == 2
    assert f"--peer {peer} needs torch" in capsys.readouterr().err
