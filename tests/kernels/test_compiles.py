"""Every variant that the launchers would compile goes through NVRTC for every architecture, and none spills.

The usual loop compiles the kernels of the documentation's table and holds the table against the compiler; the slow
tests compile those of other models and settings.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinyvllm.devices.nvrtc import ARCHITECTURES, KernelUsage, compile_cubin
from tinyvllm.errors import DeviceError

from . import kernel_table
from .kernel_table import AGAIN
from .sources import all_sources
from .variants import Kernel, other_kernels, table_kernels

ROOT = Path(__file__).parents[2]
REGISTERS_PER_SM = 65_536
MAX_STATIC_BYTES = 48 * 1024
MAX_BYTES = {"80": 163, "86": 99, "89": 99, "90a": 227, "100": 227, "120": 99}
"""KiB of shared memory of one block."""

TABLE = table_kernels()
OTHERS = other_kernels()


def version() -> str:
    try:
        return kernel_table.nvrtc_version()
    except DeviceError as error:
        pytest.skip(str(error))


def check(kernel: Kernel, arch: str, usage: KernelUsage) -> None:
    defines = dict(kernel.defines)
    assert usage.spill_bytes == usage.stack_bytes == 0, f"{kernel} on sm_{arch}: {usage}"
    assert usage.registers * int(defines.get("THREADS", 0)) <= REGISTERS_PER_SM
    assert usage.static_shared_bytes <= MAX_STATIC_BYTES
    if kernel.source.startswith("attention"):  # which no launcher refuses for a small card
        assert usage.static_shared_bytes + kernel.dynamic_bytes <= MAX_BYTES[arch] * 1024


@pytest.mark.parametrize("kernel", TABLE, ids=str)
def test_the_kernels_of_the_table_compile_without_spills_and_are_as_written(kernel: Kernel) -> None:
    installed = version()
    for arch, usage in zip(kernel.architectures, kernel_table.usage_of(kernel), strict=True):
        check(kernel, arch, usage)
    made_with, rows = kernel_table.written()
    if made_with == installed:  # another compiler counts differently
        assert kernel_table.row_of(kernel) in rows, AGAIN


def test_the_table_has_a_row_for_each_kernel_and_no_other() -> None:
    _, rows = kernel_table.written()
    found = [tuple(cell.strip(" `") for cell in row.split("|")[1:3]) for row in rows]
    assert found == [(kernel.name, kernel.label) for kernel in TABLE], AGAIN


def test_every_kernel_of_every_source_is_in_the_table() -> None:
    defined = {
        (path.name, name)
        for path in all_sources()
        if path.suffix == ".cu"
        for name in re.findall(r"__global__[^;{]*?\b(\w+)\s*\([^()]*\)\s*\{", path.read_text())
    }
    assert defined == {(kernel.source, kernel.name) for kernel in TABLE}, f"launch it in variants.py, then {AGAIN}"


@pytest.mark.slow
@pytest.mark.parametrize("kernel", OTHERS, ids=str)
def test_other_models_and_settings_compile_for_every_architecture_without_spills(kernel: Kernel) -> None:
    version()
    for arch, usage in zip(kernel.architectures, kernel_table.usage_of(kernel), strict=True):
        check(kernel, arch, usage)


def other_sources() -> list[Path]:
    """Sources that no launcher compiles: those of benchmarks, tests, examples and plugins."""
    known = set(all_sources())
    folders = (ROOT / "tinyvllm", ROOT / "plugins", ROOT / "tests", ROOT / "configs")
    return sorted(path for folder in folders for path in folder.rglob("*.cu") if path not in known)


@pytest.mark.parametrize("source", other_sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_elsewhere_compile_for_every_architecture(source: Path) -> None:
    version()
    for arch in ARCHITECTURES:
        cubin = compile_cubin(source, arch)
        assert cubin.code.startswith(b"\x7fELF")
        assert all(usage.spill_bytes == 0 for usage in cubin.usage), cubin.usage
