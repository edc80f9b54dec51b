"""What is compiled is kept, and compiled again exactly when something that it depends on has changed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tinyvllm.devices.compile_cache import INCLUDE_DIR, cached, read_sources
from tinyvllm.devices.emulator import EmulatorDevice

SOURCE = '#include "tinyvllm/prelude.cuh"\n#include "part.cuh"\nextern "C" __global__ void k(int* x) { *x = VALUE; }\n'


def test_compiled_again_only_when_something_changed(cache_dir: Path, tmp_path: Path) -> None:
    source, part = tmp_path / "k.cu", tmp_path / "part.cuh"
    source.write_text(SOURCE)
    part.write_text("// nothing\n")

    def num_compiled() -> int:
        return len(list((cache_dir / "emulator").glob("k-*.so")))

    for device in (EmulatorDevice(cache_dir=cache_dir), EmulatorDevice(cache_dir=cache_dir)):
        device.compile(source, {"VALUE": 1})
        assert num_compiled() == 1
    EmulatorDevice(cache_dir=cache_dir).compile(source, {"VALUE": 2})
    assert num_compiled() == 2
    EmulatorDevice(cache_dir=cache_dir, arch=80).compile(source, {"VALUE": 1})
    assert num_compiled() == 3
    part.write_text("// something\n")
    EmulatorDevice(cache_dir=cache_dir).compile(source, {"VALUE": 1})
    assert num_compiled() == 4
    assert not list((cache_dir / "emulator").glob(".*"))


def test_included_files_are_found_as_the_compiler_finds_them(tmp_path: Path) -> None:
    source = tmp_path / "k.cu"
    source.write_text(SOURCE)
    (tmp_path / "part.cuh").write_text('#include "absent.cuh"\n')
    names = [path.name for path in read_sources(source, [INCLUDE_DIR])]
    assert names[0] == "k.cu"
    assert {"part.cuh", "prelude.cuh", "mma.cuh"} <= set(names)
    assert "absent.cuh" not in names


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        target.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached(tmp_path / "cache" / "entry.so", fail)
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_builds_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    both_inside = threading.Barrier(2)

    def build(target: Path) -> None:
        both_inside.wait()
        target.write_text("whole")

    threads = [threading.Thread(target=cached, args=(tmp_path / "entry.so", build)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
