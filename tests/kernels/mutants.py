"""Kernels with a fault planted in them, and whether the tests would notice.

A mutant is a folder with all kernels, one of them changed. It is judged by a scenario: a function of the tests' own,
called with a device that takes its kernels from that folder. What values cannot show is shown by a sanitizer in a
process of its own. A mutant that does not compile proves nothing and is an error.
"""

from __future__ import annotations

import faulthandler
import os
import re
import traceback
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

from tinyvllm.device import Gpu, Module
from tinyvllm.devices.compile_cache import INCLUDE_DIR, read_sources
from tinyvllm.devices.emulator import Sanitizer
from tinyvllm.devices.emulator.check import Verdict, check
from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.errors import KernelError

from .sources import all_sources

TEST_KERNELS = Path(__file__).parent
NUM_SEEDS = 4
_OTHER_FOLDER = re.compile(r"(?<=#include \")(?:\.\./[./\w]*|\.\.|tinyvllm/shared)/(?=\w+\.cuh\")")
"""In an include: the way to another folder. A mutant has all kernels in one."""

Scenario = Callable[[Gpu], None]


class DoesNotCompileError(Exception):
    """The compiler noticed, so no test had to."""


class DeviceOfFolder:
    """``device``, but kernels that differ are taken from ``folder``; the others stay where they are compiled."""

    def __init__(self, device: Gpu, folder: Path) -> None:
        self._device, self._folder = device, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def compile(self, source: Path, defines: Mapping[str, str | int] | None = None) -> Module:
        """The file of the same name in the folder, if it or what it includes is another there."""
        ours = self._folder / source.name
        try:
            return self._device.compile(source if _contents(ours) == _contents(source) else ours, defines)
        except KernelError as error:
            if "does not compile it" in str(error):
                raise DoesNotCompileError(str(error)) from error
            raise


def device_of(device: Gpu, folder: str | Path | None) -> Gpu:
    """``device``, with its kernels from ``folder`` if there is one."""
    return device if folder is None else cast(Gpu, DeviceOfFolder(device, Path(folder)))


def without_folders(text: str) -> str:
    """A source whose includes lie in its own folder."""
    return _OTHER_FOLDER.sub("", text)


def copy_kernels(folder: Path) -> Path:
    """All kernels, and those of the tests, in one folder."""
    for path in (*all_sources(), *TEST_KERNELS.glob("*.cu")):
        (folder / path.name).write_text(without_folders(path.read_text()))
    return folder


def plant(folder: Path, name: str, old: str | re.Pattern[str], new: str) -> Path:
    """The kernels with ``old`` replaced in the file ``name``, where it must stand exactly once."""
    path = copy_kernels(folder) / name
    pattern = re.compile(re.escape(old)) if isinstance(old, str) else old
    text = path.read_text()
    changed, count = pattern.subn((lambda _: new) if isinstance(old, str) else new, text)
    assert count == 1, f"{name} has changed: {pattern.pattern!r} is {count} times in it; say this slip anew"
    assert changed != text
    path.write_text(changed)
    return path


def is_broken(scenario: Scenario, folder: Path, cache_dir: Path) -> bool:
    """Whether the kernels in ``folder`` fail the scenario in any of a few orders of threads.

    In a process of its own: a mutant may write anywhere, and so break what runs after it.
    """
    child = os.fork()
    if child == 0:
        os._exit(_judged(scenario, folder, cache_dir))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    outcome = _Outcome(os.WEXITSTATUS(status))
    if outcome is _Outcome.DOES_NOT_COMPILE:
        raise DoesNotCompileError(str(folder))
    assert outcome is not _Outcome.ERROR, "the scenario itself has failed; see the output"
    return outcome is _Outcome.BROKEN


class _Outcome(IntEnum):
    RIGHT = 0
    BROKEN = 1
    DOES_NOT_COMPILE = 2
    ERROR = 3


def _judged(scenario: Scenario, folder: Path, cache_dir: Path) -> _Outcome:
    faulthandler.disable()
    try:
        for seed in range(NUM_SEEDS):
            scenario(device_of(EmulatorDevice(cache_dir=cache_dir, seed=seed * 1000), folder))
    except (AssertionError, KernelError):
        return _Outcome.BROKEN
    except DoesNotCompileError:
        traceback.print_exc()
        return _Outcome.DOES_NOT_COMPILE
    except BaseException:
        traceback.print_exc()
        return _Outcome.ERROR
    return _Outcome.RIGHT


def sanitize(
    where: str, sample: str, sanitizer: Sanitizer, folder: Path | None, cache_dir: Path, **arguments: Any
) -> Verdict:
    """What the sanitizer finds in ``run_<sample>`` of a module with the kernels in ``folder`` (None: as they are)."""
    given = arguments if folder is None else {"folder": str(folder), **arguments}
    return check(f"{where}:run_{sample}", sanitizer, given, cache_dir=cache_dir)


def _contents(source: Path) -> dict[str, bytes]:
    found = read_sources(source, [INCLUDE_DIR])
    return {path.name: without_folders(data.decode()).encode() for path, data in found.items()}
