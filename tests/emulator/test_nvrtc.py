"""The same sources compile for every supported architecture, with no GPU; skipped where NVRTC is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.samples import KERNELS
from tinyvllm.devices import nvrtc
from tinyvllm.errors import DeviceError, KernelError

PTXAS_LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 4096 bytes smem, 372 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 13 registers, 360 bytes cmem[0]
"""


def test_usage_is_read_from_the_log() -> None:
    assert nvrtc.read_usage(PTXAS_LOG) == (
        nvrtc.KernelUsage("one", registers=255, static_shared_bytes=4096, stack_bytes=8, spill_bytes=16),
        nvrtc.KernelUsage("two", registers=13, static_shared_bytes=0, stack_bytes=0, spill_bytes=0),
    )


@pytest.fixture
def needs_nvrtc(tmp_path: Path) -> None:
    try:
        nvrtc.compile_cubin(KERNELS / "dependent.cu", "80", cache_dir=tmp_path / "probe")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("needs_nvrtc")
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_every_sample_compiles_without_spills(arch: str) -> None:
    for source in sorted(KERNELS.glob("*.cu")):
        cubin = nvrtc.compile_cubin(source, arch)
        assert cubin.code.startswith(b"\x7fELF")
        assert cubin.usage
        assert all(kernel.spill_bytes == 0 and kernel.registers > 0 for kernel in cubin.usage), cubin.usage


@pytest.mark.usefixtures("needs_nvrtc")
def test_a_cubin_comes_from_the_cache_until_something_changes(tmp_path: Path) -> None:
    source, cache = tmp_path / "k.cu", tmp_path / "cache"
    source.write_text('#include "tinyvllm/prelude.cuh"\nextern "C" __global__ void k(int* x) { *x = VALUE; }\n')
    first = nvrtc.compile_cubin(source, "80", {"VALUE": 1}, cache_dir=cache)
    assert nvrtc.compile_cubin(source, "80", {"VALUE": 1}, cache_dir=cache) == first
    assert len(list(cache.rglob("*.cubin"))) == 1
    assert nvrtc.compile_cubin(source, "80", {"VALUE": 2}, cache_dir=cache).code != first.code
    nvrtc.compile_cubin(source, "90a", {"VALUE": 1}, cache_dir=cache)
    source.write_text(source.read_text() + "// another comment\n")
    nvrtc.compile_cubin(source, "80", {"VALUE": 1}, cache_dir=cache)
    assert len(list(cache.rglob("*"))) == 1 + 4  # the folder and four cubins, no temporary file


@pytest.mark.usefixtures("needs_nvrtc")
def test_a_refused_source_says_where(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text('#include "tinyvllm/prelude.cuh"\nextern "C" __global__ void k(int* x) { *x = nonsense; }\n')
    with pytest.raises(KernelError, match=r"broken\.cu\(2\): error: identifier \"nonsense\" is undefined"):
        nvrtc.compile_cubin(source, "80", cache_dir=tmp_path)
