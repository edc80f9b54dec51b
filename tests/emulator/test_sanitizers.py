"""What the sanitizers see that values do not, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator import samples
from tinyvllm.devices.compile_cache import INCLUDE_DIR
from tinyvllm.devices.emulator import Sanitizer
from tinyvllm.devices.emulator.check import check, main
from tinyvllm.devices.emulator.reports import Finding, read_reports
from tinyvllm.errors import DeviceError, KernelError

RACE_LOG = f"""noise
==================
WARNING: ThreadSanitizer: data race (pid=1)
  Write of size 4 at 0x7b0800000100 by thread T3:
    #0 block_sum {INCLUDE_DIR}/tinyvllm/block.cuh:12 (k.so+0x11)
    #1 soft /home/me/soft.cu:31 (k.so+0x12)

  Previous read of size 4 at 0x7b0800000100 by thread T2:
    #0 soft /home/me/soft.cu:29 (k.so+0x13)

SUMMARY: ThreadSanitizer: data race /home/me/soft.cu:31 in soft
==================
"""
BOUNDS_LOG = """/home/me/soft.cu:7:12: runtime error: index 33 out of bounds for type 'float [33]'
=================================================================
==7==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x602 at pc 0x7f bp 0x7f sp 0x7f
WRITE of size 4 at 0x602 thread T0
    #0 0x7f0 in soft /home/me/soft.cu:7
    #1 0x7f1 in other (/lib/x.so+0x1)

SUMMARY: AddressSanitizer: heap-buffer-overflow /home/me/soft.cu:7 in soft
"""


def test_reports_become_findings() -> None:
    assert read_reports(RACE_LOG) == (
        Finding(
            "race",
            "/home/me/soft.cu:31",
            "write of size 4 at /home/me/soft.cu:31, previous read of size 4 at /home/me/soft.cu:29",
        ),
    )
    undefined, overflow = read_reports(BOUNDS_LOG)
    assert undefined == Finding(
        "undefined behaviour", "/home/me/soft.cu:7", "index 33 out of bounds for type 'float [33]'"
    )
    assert overflow.kind == "heap-buffer-overflow"
    assert overflow.place == "/home/me/soft.cu:7"
    assert read_reports("nothing of interest") == ()


def mutant(folder: Path, source: str, old: str, new: str) -> str:
    text = (samples.KERNELS / source).read_text()
    assert text.count(old) == 1
    path = folder / source
    path.write_text(text.replace(old, new))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", samples.ALL)
@pytest.mark.parametrize("sanitizer", [Sanitizer.RACE, Sanitizer.BOUNDS])
def test_right_kernels_are_clean(checked_cache_dir: Path, name: str, sanitizer: Sanitizer) -> None:
    verdict = check(f"{samples.__file__}:run_{name}", sanitizer, cache_dir=checked_cache_dir)
    assert verdict.is_clean, verdict.findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "old", "new", "kind", "line"),
    [
        ("transpose", "transpose.cu", "&& column < num_columns", "", "heap-buffer-overflow", 17),  # unguarded load
        ("transpose", "transpose.cu", "&& blockIdx.x * 32 + i < num_columns", "", "heap-buffer-overflow", 22),
        ("transpose", "transpose.cu", "tile[32][33]", "tile[31][33]", "undefined behaviour", 17),
        ("gemm", "gemm.cu", "num_stages = 3;", "num_stages = 4;", "heap-buffer-overflow", None),  # dynamic shared
        ("gemm", "gemm.cu", "pitch = tile_k + 8;", "pitch = tile_k + 4;", "emulator", 25),  # misaligned copy
        ("scan", "scan.cu", "int totals[32]", "int totals[4]", "undefined behaviour", 18),
        ("moments", "moments.cu", "size_t(blockIdx.x) * num_columns", "size_t(blockIdx.x) * num_columns + 1",
         "heap-buffer-overflow", 14),
    ],
)  # fmt: skip
def test_overruns_are_caught_with_their_line(
    checked_cache_dir: Path, tmp_path: Path, name: str, source: str, old: str, new: str, kind: str, line: int | None
) -> None:
    path = mutant(tmp_path, source, old, new)
    verdict = check(f"{samples.__file__}:run_{name}", Sanitizer.BOUNDS, {"source": path}, cache_dir=checked_cache_dir)
    found = [finding for finding in verdict.findings if finding.kind == kind]
    where = f"{path}:{line}" if line else path
    assert any(where in str(finding) for finding in found), verdict.findings
    with pytest.raises(KernelError):
        verdict.raise_if_found()


@pytest.mark.slow
def test_a_misaligned_vector_access_past_the_primitives(checked_cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "cast.cu").write_text(
        '#include "tinyvllm/prelude.cuh"\n'
        'extern "C" __global__ void cast(float* out, const float* x) {\n'
        "    out[threadIdx.x] = reinterpret_cast<const float4*>(x + 1)[threadIdx.x].x;\n}\n"
    )
    (tmp_path / "run.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        "def run(device):\n"
        "    out, x = device.memory.alloc((8,), np.float32), device.memory.alloc((64,), np.float32)\n"
        "    function = device.compile(Path(__file__).with_name('cast.cu')).function('cast')\n"
        "    device.launch(function, (1, 1, 1), (8, 1, 1), [out, x])\n"
    )
    verdict = check(f"{tmp_path}/run.py:run", Sanitizer.BOUNDS, cache_dir=checked_cache_dir)
    assert any("misaligned" in f.message and f.place.endswith("cast.cu:3") for f in verdict.findings), verdict.findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "old", "new"),
    [
        # Between blocks: the arrival no longer releases what the block wrote, or the partial sums are read too early.
        ("last_block", "grid_sum.cu", "is_last = is_last_arrival(counter, gridDim.x);",
         "is_last = atomicAdd(counter, 1u) == gridDim.x - 1; if (is_last) *counter = 0;"),
        ("grid_sum", "grid_sum.cu", "grid_barrier(state);", "__syncthreads();"),
        # Between kernels: a read before the wait.
        ("dependent", "dependent.cu", "pdl_wait();  // y is complete before it is read", ""),
    ],
)  # fmt: skip
def test_races_between_blocks_and_kernels(
    checked_cache_dir: Path, tmp_path: Path, name: str, source: str, old: str, new: str
) -> None:
    path = mutant(tmp_path, source, old, new)
    verdict = check(f"{samples.__file__}:run_{name}", Sanitizer.RACE, {"source": path}, cache_dir=checked_cache_dir)
    assert any(f.kind == "race" and f.place.startswith(f"{path}:") for f in verdict.findings), verdict.findings


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bounds", f"{samples.__file__}:run_scan", "--arguments", '{"num_columns": 40}']) == 0
    assert capsys.readouterr().out == "nothing found\n"
    with pytest.raises(DeviceError, match="broke off"):
        check(f"{samples.__file__}:run_scan", Sanitizer.RACE, {"no_such_argument": 1})
