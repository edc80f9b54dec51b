"""kernels list, check and bench: what they print, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.testing.own_kernel import write_own_kernel
from tinyvllm.bench.roofline import Machine
from tinyvllm.cli.main import main
from tinyvllm.devices.emulator import EmulatorDevice
from tinyvllm.ops.catalogue import OPS
from tinyvllm.start.devices import DeviceChoice


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_list_names_every_op_its_implementations_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "list"]) == 0
    found = rows(capsys.readouterr().out)
    assert found[0] == ["OP", "DEVICES", "IMPLEMENTATIONS", "MADE OF", "WHAT IT DOES"]
    assert {row[0] for row in found[1:]} == set(OPS)
    assert ["rms_norm_lm_head", "emulator, cuda", "nvrtc", "rms_norm + lm_head", "final norm and logits"] in found
    assert ["linear", "cpu", "reference", "-", "x W + b"] in found


def test_list_shows_a_local_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "list", "--op", "rms_norm", "--plugin", str(write_own_kernel(tmp_path))]) == 0
    assert rows(capsys.readouterr().out)[2][:4] == ["rms_norm", "emulator, cuda", "my_rms_norm, nvrtc", "-"]


def test_list_imports_nothing_of_cuda_and_no_test_library() -> None:
    code = (
        "import sys; from tinyvllm.cli.main import main; main(['kernels', 'list']); "
        "print([name for name in sys.modules if name.split('.')[0] in ('cuda', 'cupy', 'hypothesis', 'pytest')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_check_ends_well_for_what_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "check", "linear_residual", "--device", "emulator", "--cases", "5"]) == 0
    found = rows(capsys.readouterr().out)
    who = ["hopper", "nvrtc", "parts"]
    assert [row[1:3] + row[4:] for row in found[1:]] == [[name, "emulator", "right"] for name in who]


def test_check_shows_what_is_wrong_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = write_own_kernel(tmp_path, (" / size + eps", " / size * 2 + eps"))
    assert main(["kernels", "check", "rms_norm", "--plugin", str(plugin)]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "rms_norm by my_rms_norm on emulator: WRONG: out: " in out
    assert "written by kernel my_rms_norm, block (0, 0, 0) thread (0, 0, 0)" in out


def test_check_without_hypothesis_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None; from tinyvllm.cli.main import main; "
        "sys.exit(main(['kernels', 'check', 'rms_norm']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'tinyvllm[test]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sanitizer_is_for_the_emulator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "check", "rms_norm", "--race", "--device", "cpu"]) == 2
    assert "--race and --sanitize run on the emulator, not on cpu" in capsys.readouterr().err


def test_bench_times_the_cpu_and_writes_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less work than for numbers that somebody reads."""
    monkeypatch.setattr("tinyvllm.bench.roofline._STREAM_BYTES", 1 << 24)
    monkeypatch.setattr("tinyvllm.bench.roofline._MATRIX_SIZE", 256)
    monkeypatch.setattr("tinyvllm.bench.kernels._COLD_BYTES", 1 << 24)
    monkeypatch.setattr("tinyvllm.bench.kernels._MIN_SECONDS", 0.05)
    output = tmp_path / "linear.json"
    arguments = ["kernels", "bench", "linear", "--device", "cpu", "--rows", "1", "16", "--output-json", str(output)]
    assert main(arguments) == 0
    first, header, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("cpu: ")
    assert header.split()[:4] == ["OP", "IMPLEMENTATION", "ROWS", "US"]
    assert len(lines) == 2
    found = json.loads(output.read_text())
    assert [each["num_rows"] for each in found] == [1, 16]
    for each in found:
        assert each["us"] > 0
        assert each["gigabytes_per_s"] == pytest.approx(each["megabytes"] / each["us"] * 1e3)


class TimedEmulator(EmulatorDevice):
    """With the one thing that an emulator lacks: a clock. A call takes a microsecond for each launch."""

    def time_us(self, work: Callable[[], None], repeats: int) -> float:
        with self.capture() as graph:
            work()
        graph.replay()
        self.synchronize()
        return 1.0 * len(graph.tasks)


def test_bench_on_a_device_times_calls_on_copies_of_their_operands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = TimedEmulator()
    monkeypatch.setattr("tinyvllm.bench.kernels._MAX_COPIES", 3)
    monkeypatch.setattr("tinyvllm.bench.kernels.measure", lambda _: Machine(1e12, 1e15, "a card"))
    monkeypatch.setattr("tinyvllm.start.devices.choose_device", lambda _: DeviceChoice("cuda", "for the test"))
    monkeypatch.setattr("tinyvllm.testing.check.open_device", lambda _: device)
    arguments = ["--rows", "1", "40", "--context-len", "100", "--implementation", "nvrtc"]
    for op in ("rms_norm", "rope_append", "rms_norm_qkv_rope_append", "lm_head_argmax"):
        assert main(["kernels", "bench", op, *arguments]) == 0
        first, _, one, many = rows(capsys.readouterr().out)
        assert first == ["a card: 1000 GB/s, 1000.00 TFLOP/s"]
        assert one[:4] == [op, "nvrtc", "1", "1.00"]
        assert many[:3] == [op, "nvrtc", "40"]
        assert float(many[4]) > float(one[4])


def test_bench_refuses_the_emulator_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "bench", "rms_norm", "--device", "emulator"]) == 2
    assert "for checking kernels, not for timing them" in capsys.readouterr().err
