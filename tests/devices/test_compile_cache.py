"""A folder that cannot be written costs time, a line on standard error, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvllm.devices.compile_cache import cached, default_cache_dir, note_unwritable, why_unwritable
from tinyvllm.devices.cuda.cublaslt import ALGORITHM_BYTES, GemmShape
from tinyvllm.devices.cuda.gemm import AlgorithmStore
from tinyvllm.errors import CapacityError

NOWHERE = Path("/dev/null/tinyvllm")  # below a file, so not even root can make it


@pytest.fixture(autouse=True)
def not_noted_yet() -> None:
    note_unwritable.cache_clear()


def write(target: Path) -> None:
    target.write_text("built")


def test_what_cannot_be_kept_is_built_all_the_same_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = (cached(NOWHERE / name, write) for name in ("a.so", "a.so", "b.so"))
    assert first == again != other
    assert first.read_text() == other.read_text() == "built"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the cache /dev/null/tinyvllm cannot be written (Not a directory)")
    assert "set XDG_CACHE_HOME" in line


def test_a_kernel_that_fails_to_compile_is_not_taken_for_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    calls = []

    def fail(target: Path) -> None:
        calls.append(target)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached(tmp_path / "a.so", fail)
    assert len(calls) == 1


def test_where_no_folder_can_be_written_the_error_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyvllm.devices.compile_cache._temporary_dir", lambda: NOWHERE)
    with pytest.raises(CapacityError, match=r"neither the cache nor the temporary folder .* XDG_CACHE_HOME"):
        cached(NOWHERE / "a.so", write)


def test_a_user_without_a_home_folder_has_a_temporary_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert why_unwritable(default_cache_dir()) is None
    assert "no home folder" in capsys.readouterr().err


def test_whether_a_folder_can_be_written_is_found_by_writing(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "new") is None
    assert list((tmp_path / "new").iterdir()) == []
    assert why_unwritable(NOWHERE) == "Not a directory"


def test_a_timed_choice_that_cannot_be_kept_holds_as_long_as_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    store, shape = AlgorithmStore(NOWHERE, "a card", 130000), GemmShape(8, 2048, 8192, "bfloat16")
    store.put(shape, False, b"1" * ALGORITHM_BYTES)
    assert store.get(shape, False) == b"1" * ALGORITHM_BYTES
    assert "cannot be written" in capsys.readouterr().err


def test_the_temporary_folder_goes_with_the_process() -> None:
    code = (
        "from pathlib import Path; from tinyvllm.devices.compile_cache import cached;"
        "print(cached(Path('/dev/null/x/a.so'), lambda target: target.write_text('built')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    path = Path(done.stdout.strip())
    assert path.name == "a.so"
    assert not path.parents[1].exists()
