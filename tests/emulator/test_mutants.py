"""Each synchronisation of the sample kernels, and of the prelude, removed in turn: something must notice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.emulator import samples
from tinyvllm.devices.compile_cache import INCLUDE_DIR
from tinyvllm.devices.emulator import EmulatorDevice, Sanitizer
from tinyvllm.devices.emulator.check import check
from tinyvllm.devices.emulator.mutants import Mutant, mutants_of
from tinyvllm.errors import KernelError

SOURCES = {
    "moments": "moments.cu",
    "maxima": "maxima.cu",
    "transpose": "transpose.cu",
    "gemm": "gemm.cu",
    "scan": "scan.cu",
    "grid_sum": "grid_sum.cu",
    "last_block": "grid_sum.cu",
    "dependent": "dependent.cu",
}


def all_mutants() -> list[tuple[str, Mutant]]:
    found = [(name, mutant) for name in SOURCES for mutant in mutants_of(samples.KERNELS / SOURCES[name])]
    # grid_sum.cu holds two kernels: a statement of the one is not missed by the sample of the other.
    first_of_last_block = 29
    return [
        (name, mutant)
        for name, mutant in found
        if SOURCES[name] != "grid_sum.cu" or (name == "last_block") == (mutant.line >= first_of_last_block)
    ]


def is_caught_by_values(name: str, source: Path, cache_dir: Path, num_seeds: int = 30) -> bool:
    device = EmulatorDevice(cache_dir=cache_dir)
    try:
        for _ in range(num_seeds):
            samples.ALL[name](device, str(source))
    except (AssertionError, KernelError) as error:
        if "does not compile it" in str(error):
            raise  # the compiler has noticed, which proves nothing
        return True
    return False


@pytest.mark.parametrize(("name", "mutant"), all_mutants(), ids=lambda x: x if isinstance(x, str) else str(x.line))
def test_a_missing_synchronisation_changes_results(cache_dir: Path, tmp_path: Path, name: str, mutant: Mutant) -> None:
    assert is_caught_by_values(name, mutant.write(tmp_path, SOURCES[name]), cache_dir), mutant.statement


# Which samples use a header: together they miss each of its barriers.
PRELUDE_USERS = {"block.cuh": ("moments", "maxima"), "grid.cuh": ("grid_sum",)}


def prelude_mutants() -> list[tuple[str, Mutant]]:
    return [(name, mutant) for name in PRELUDE_USERS for mutant in mutants_of(INCLUDE_DIR / "tinyvllm" / name)]


def all_prelude_places() -> list[tuple[str, int]]:
    """File and line of what is removed from the prelude, in order."""
    return [(name, mutant.line) for name, mutant in prelude_mutants()]


def write_with_prelude(folder: Path, header: str, mutant: Mutant, kernel: Path) -> Path:
    """The kernel beside a prelude of its own, in which ``header`` is the mutant."""
    shutil.copytree(INCLUDE_DIR / "tinyvllm", folder / "tinyvllm")
    (folder / "tinyvllm" / "tinyvllm").symlink_to(".")  # an include is looked up beside the including file first
    mutant.write(folder / "tinyvllm", header)
    return Path(shutil.copy(kernel, folder))


@pytest.mark.parametrize(
    ("header", "mutant"), prelude_mutants(), ids=lambda x: x if isinstance(x, str) else str(x.line)
)
def test_a_missing_synchronisation_in_the_prelude_changes_results(
    cache_dir: Path, tmp_path: Path, header: str, mutant: Mutant
) -> None:
    caught = []
    for name in PRELUDE_USERS[header]:
        source = write_with_prelude(tmp_path / name, header, mutant, samples.KERNELS / SOURCES[name])
        caught.append(is_caught_by_values(name, source, cache_dir))
    assert any(caught), mutant.statement


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moments", "transpose", "scan", "gemm"])
def test_the_race_check_names_the_line_of_every_missing_barrier(
    checked_cache_dir: Path, tmp_path: Path, name: str
) -> None:
    source = samples.KERNELS / SOURCES[name]
    function = f"{samples.__file__}:run_{name}"
    assert check(function, Sanitizer.RACE, cache_dir=checked_cache_dir).findings == ()
    for mutant in mutants_of(source, re.compile(r"__sync\w+\(\);")):
        path = mutant.write(tmp_path / str(mutant.line), source.name)
        verdict = check(function, Sanitizer.RACE, {"source": str(path)}, cache_dir=checked_cache_dir)
        places = [finding.place for finding in verdict.findings if finding.kind == "race"]
        assert any(place.startswith(f"{path}:") for place in places), (mutant, verdict.findings)
