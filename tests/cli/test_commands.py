"""The command line as a whole: verbs, exit codes, errors as one clear line."""

import functools
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tinyvllm.cli.doctor
from tinyvllm import errors
from tinyvllm.cli.bench_table import cell
from tinyvllm.cli.commands import COMMANDS
from tinyvllm.cli.main import main, parser
from tinyvllm.cli.text_table import aligned
from tinyvllm.demo import tasks
from tinyvllm.devices.cuda import probe

WriteConfig = Callable[[str], Path]
COMMAND = [sys.executable, "-m", "tinyvllm"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m tinyvllm" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_end_well(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "tinyvllm" in capsys.readouterr().out


def test_an_unknown_command_says_which_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generat"]) == 2
    assert "there is no command 'generat'; did you mean 'generate'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.PluginError, 2),
        (errors.RequestError, 2),
        (errors.LoadError, 3),
        (errors.DeviceError, 4),
        (errors.KernelError, 4),
        (errors.ShapeError, 4),
        (errors.CapacityError, 5),
        (KeyboardInterrupt, 130),
    ],
)
def test_each_error_has_its_exit_code_and_no_traceback(
    error: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise error("what and why")

    monkeypatch.setattr(tinyvllm.cli.doctor, "run", fail)
    assert main(["doctor"]) == code
    err = capsys.readouterr().err
    assert err in ("error: what and why\n", "interrupted\n")
    if issubclass(error, errors.TinyvllmError):
        assert main(["doctor", "--traceback"]) == code
        assert "Traceback" in capsys.readouterr().err


def test_a_missing_configuration_is_one_line() -> None:
    done = run("--config", "nope.yaml")
    assert (done.returncode, done.stderr, done.stdout) == (2, "error: nope.yaml: there is no such file\n", "")


def test_a_missing_model_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    done = run("generate", "--model", str(tmp_path / "absent"), "hi")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "absent") in done.stderr


def test_a_device_that_is_not_there_is_one_line_and_exit_code_4(tiny_model: Path) -> None:
    if probe().is_usable:
        pytest.skip("this machine has a GPU")
    done = run("generate", "--model", str(tiny_model), "--set", "load_format=dummy", "--device", "cuda", "hi")
    assert done.returncode == 4
    assert done.stderr.startswith("error: device cuda: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["config", "schema"], ["generate", "12+7=", "--device", "cpu"]])
def test_a_reader_that_goes_away_ends_the_command_quietly(arguments: list[str]) -> None:
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""


def test_control_c_is_exit_code_130(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}"}) for i in range(5000)))
    path = write_config("run: {prompts_file: in.jsonl, output: out.jsonl, sampling: {max_tokens: 50}}\n")
    process = subprocess.Popen(
        [*COMMAND, "--config", str(path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Whoever runs the tests in the background of a shell has them ignore Ctrl-C, and their children with them.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not ((tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl").stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"interrupted\n")


def test_plugins_list_shows_what_is_installed_without_importing_it() -> None:
    code = (
        "import sys; from tinyvllm.cli.main import main; code = main(['plugins', 'list']);"
        "unwanted = ('tinyvllm_', 'tinyvllm.models', 'tinyvllm.engine');"
        "assert not any(m.startswith(unwanted) for m in sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["KIND", "NAME", "DISTRIBUTION", "VERSION", "API", "STATE"]
    assert ["scheduler", "static", "tinyvllm", tinyvllm.__version__, "v1", "ready"] in lines


def test_plugins_check_gives_a_verdict_for_each(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "--model", str(tiny_model)]) == 0
    verdicts = {tuple(line.split()[:3]) for line in capsys.readouterr().out.splitlines()}
    assert verdicts >= {
        ("loader", "safetensors", "ok"),
        ("attention", "paged", "ok"),
        ("scheduler", "continuous", "ok"),
        ("sampler", "default", "ok"),
        ("kernel", "reference", "ok"),
    }


def test_plugins_check_tells_why_a_plugin_cannot_serve_a_device(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from tinyvllm.hookspecs import hookimpl\nfrom tinyvllm.interfaces import Plugin\n"
        "from tinyvllm_attention.paged import PagedAttention\n"
        "class Mine(PagedAttention):\n"
        "    def supports(self, spec):\n"
        "        return [] if spec.device == 'cpu' else [f'knows NumPy alone, not {spec.device}']\n"
        "@hookimpl\ndef register_attention():\n    return [Plugin('mine', Mine)]\n"
    )
    flags = ["--model", str(tiny_model), "--kind", "attention", "--device", "cuda"]
    assert main(["plugins", "check", *flags, "--plugin", str(tmp_path / "mine.py")]) == 0
    _, paged, mine = sorted(capsys.readouterr().out.splitlines(), key=lambda line: "mine" in line)
    assert paged.startswith("attention  paged  ok")
    assert mine.split() == ["attention", "mine", "cannot", "serve", "knows", "NumPy", "alone,", "not", "cuda"]


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("register_schedulers", "broken"),
        ("needs", "needs options"),
    ],
)
def test_plugins_check_shows_broken_plugins_and_goes_on(
    tiny_model: Path, tmp_path: Path, source: str, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from tinyvllm.hookspecs import hookimpl\nfrom tinyvllm.interfaces import Options, Plugin\n"
        "class Needs(Options):\n    size: int\n"
        "@hookimpl\ndef register_schedulers():\n"
        f"    return [Plugin('mine', lambda context: 1, options=Needs if {source == 'needs'} else Options)]\n"
    )
    flags = ["--model", str(tiny_model), "--plugin", str(tmp_path / "mine.py")]
    assert main(["plugins", "check", *flags]) == (2 if verdict == "broken" else 0)
    lines = capsys.readouterr().out.splitlines()
    (mine,) = [line for line in lines if "mine" in line.split()[:2]]
    assert verdict in mine
    assert any(line.startswith("sampler") for line in lines), "the others are checked too"


def test_plugins_check_of_an_unknown_name_is_an_error(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "--model", str(tiny_model), "--kind", "scheduler", "--name", "statc"]) == 2
    assert "did you mean 'static'?" in capsys.readouterr().err


def test_config_show_prints_every_value_with_its_origin(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config("scheduler: {name: static}\n")
    assert main(["config", "show", "--config", str(path), "--set", "scheduler.max_num_seqs=4", "--device", "cpu"]) == 0
    lines = [line.split("  # ") for line in capsys.readouterr().out.splitlines()]
    origins = {line[0].strip(): line[1] for line in lines if len(line) == 2}
    assert origins["name: static"] == f"{path}:3"
    assert origins["max_num_seqs: 4"] == "--set scheduler.max_num_seqs=4"
    assert origins["device: cpu"] == "--device cpu"
    assert origins["seed: 0"] == "default"


def test_config_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["model"]["type"] == "string"


def test_doctor_says_what_there_is_and_what_will_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for subject in ("Python", "NumPy", "BLAS", "CUDA driver", "NVRTC", "cupy", "device auto"):
        assert subject in out
    assert "threads" in out


def test_demo_sample_prints_items_with_right_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--sample", "addition", "--items", "20", "--seed", "3"]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(items) == 20
    for item in items:
        left, right = item["prompt"].removesuffix("=").split("+")
        assert item["answer"] == str(int(left) + int(right))


@pytest.mark.parametrize("flags", [["--sample", "cooking"], ["--verify", "--items", "0", "--model", "TINY"]])
def test_demo_refuses_what_makes_no_sense(
    flags: list[str], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(tiny_model) if flag == "TINY" else flag for flag in flags]
    dummy = ["--set", "load_format=dummy"]
    assert main(["demo", *flags, *dummy]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_demo_verify_fails_with_a_model_that_knows_nothing(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(tiny_model), "--set", "load_format=dummy", "--items", "2", "--set", "max_model_len=250"]
    assert main(["demo", "--verify", *flags]) in (1, 2)
    out = capsys.readouterr().out
    assert not out or out.startswith("addition 0/2 0.0 %")
    assert tasks.TASKS


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned(("A", "B"), [("xxx", "y"), ("z", "w\nmore")]) == "A    B\nxxx  y\nz    w\nmore"


def test_chat_answers_line_by_line(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n/help\n/clear\nhello\n/exit\nnever\n"))
    flags = ["--model", str(tiny_model), "--set", "load_format=dummy", "--max-tokens", "5", "--temperature", "0"]
    assert main(["chat", *flags, "--system", "Be brief."]) == 0
    first, *help_, second = capsys.readouterr().out.rstrip("\n").split("\n")
    assert first == second != ""
    assert "/exit" in "".join(help_)


def test_every_command_has_a_help_line() -> None:
    assert all(name in parser().format_help() for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "usage", "hint"),
    [
        (["generate", "a", "--tempature", "0"], "usage: python -m tinyvllm generate ", "did you mean '--temperature'?"),
        (
            ["bench", "latency", "--batchsize=4"],
            "usage: python -m tinyvllm bench latency ",
            "did you mean '--batch-size'?",
        ),
        (["plugins", "list", "extra"], "usage: python -m tinyvllm plugins list ", "unrecognized arguments: extra"),
        (["--config", "a.yaml", "--modle", "x"], "usage: python -m tinyvllm run ", "did you mean '--model'?"),
        (["config", "schema", "a\x1b[2J"], "usage: python -m tinyvllm config schema ", "'a\\x1b[2J'"),
    ],
)
def test_a_wrong_flag_shows_the_usage_of_its_verb_and_the_nearest_flag(
    arguments: list[str], usage: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith(usage)
    assert hint in err.splitlines()[-1]


def test_version_has_a_short_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-V"])
    assert capsys.readouterr().out == f"tinyvllm {tinyvllm.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_that_are_of_it_and_can_be_parsed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    out = capsys.readouterr().out
    for example in COMMANDS[name].examples:
        assert f"  python -m tinyvllm {example}\n" in out
        words = shlex.split(example.partition(" <")[0].partition(" >")[0])
        parser().parse_args(words if words[0] == name else ["run", *words])


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, expected in [
        ("generate", ["(default: demo)", "(default: auto)", "(default: 16 or the checkpoint's)", "(default: 1)"]),
        ("bench latency", ["(default: 32)", "(default: 128)", "(default: 5)"]),
    ]:
        with pytest.raises(SystemExit):
            main([*verb.split(), "--help"])
        out = " ".join(capsys.readouterr().out.split())
        assert all(each in out for each in expected)


@pytest.mark.parametrize(
    ("value", "shown_as"),
    [
        (("ms_per_token", 1.5637), "1.564 ms"),
        (("host_us_per_step", 18.9), "18.9 us"),
        (("tokens_per_s", 6881.23), "6881.2 tokens/s"),
        (("duration_s", 2.5), "2.5 s"),
        (("bandwidth", 1.918e10), "19.18 GB/s"),
        (("matrix_rate", 9.5e10), "95 GFLOP/s"),
        (("matrix_rate", 9.5e14), "950 TFLOP/s"),
        (("weight_bytes", 7864320.0), "7.864 MB"),
        (("input_len", 32), "32 tokens"),
        (("transformers:ms_per_token", 2.0), "2 ms"),
        (("price", 2.32), "2.32 x"),
        (("batch_size", 64), "64"),
        (("device", "cpu"), "cpu"),
        (("is_bit_equal", True), "True"),
        (("fraction_of_datasheet", None), ""),
    ],
)
def test_figures_of_benchmarks_have_their_units(value: tuple[str, object], shown_as: str) -> None:
    assert cell(*value) == shown_as


def test_bench_overhead_times_a_local_scheduler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from tinyvllm.hookspecs import hookimpl\nfrom tinyvllm.interfaces import Plugin\n"
        "from tinyvllm.packing import pack\n"
        "class Mine:\n    def __init__(self, context): pass\n"
        "    def schedule(self, view): return pack(view, view.running, view.waiting)\n"
        "@hookimpl\ndef register_schedulers():\n    return [Plugin('mine', Mine)]\n"
    )
    sizes = ["--num-seqs", "2", "--context-len", "10", "--num-steps", "5"]
    plugin = ["--plugin", str(tmp_path / "mine.py")]
    assert main(["bench", "overhead", "--scheduler", "mine", *plugin, *sizes]) == 0
    assert re.search(r"us_per_step +[\d.]+ us", capsys.readouterr().out)
    assert main(["bench", "overhead", "--num-steps", "0"]) == 2


@pytest.mark.parametrize("command", ["bench overhead", "kernels bench rms_norm"])
def test_figures_that_could_not_be_written_are_refused_before_they_are_measured(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tinyvllm.bench.overhead.measure_overhead", None)
    monkeypatch.setattr("tinyvllm.bench.kernels.measure_kernels", None)
    for path, reason in [(tmp_path / "no" / "a.json", "there is no such folder"), (tmp_path, "it is a folder")]:
        assert main([*command.split(), "--output-json", str(path)]) == 2
        assert f"--output-json: cannot write {path}: {reason}" in capsys.readouterr().err
