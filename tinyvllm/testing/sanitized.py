"""Cases for a sanitizer, which runs them in a process of its own: few, ragged, and of every size that matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinyvllm.device import Gpu
from tinyvllm.devices.emulator.build import Sanitizer
from tinyvllm.devices.emulator.check import check
from tinyvllm.errors import ConfigError, KernelError, TinyvllmError
from tinyvllm.registry import Registry
from tinyvllm.shapes import ModelShape
from tinyvllm.testing.check import Outcome, find_subjects, subjects_of
from tinyvllm.testing.parameters import MAX_CONTEXT, Parameters

_SMALL = ModelShape(1, 136, 6, 2, 16, 72, 70, MAX_CONTEXT)
"""Ragged, and of few blocks: every thread is a fibre of the sanitizer's own, which take milliseconds to make."""

_CASES = (
    Parameters(_SMALL, (1,), (70,)),
    Parameters(_SMALL, (5, 1, 3), (0, 130, 9), has_bias=True),
    Parameters(_SMALL, (1,) * 9, (0, 1, 2, 3, 64, 65, 200, 7, 8), has_bias=True, sliding_window=5),
    Parameters(_SMALL, (1,) * 3, (3, 70, 140), batch_invariant=True, block_size=8),
    Parameters(_SMALL, (20,), (0,)),
)
_WITH_HEAD_NORMS = ("rope_append", "rms_norm_qkv_rope_append")


def check_sanitized(
    op: str, sanitizer: Sanitizer, *, implementation: str | None = None, plugins: Sequence[str | Path] = ()
) -> list[Outcome]:
    """What a sanitizer of the emulator finds in each implementation of ``op``; arguments as of ``check_op``.

    Raises:
        ConfigError, PluginError: as ``check_op``.
        DeviceError: the sanitizer is not installed, or its process broke off.
    """
    files = [str(Path(plugin).resolve()) if Path(plugin).exists() else str(plugin) for plugin in plugins]
    outcomes = []
    for subject in find_subjects(op, "emulator", implementation, plugins):
        request = {"op": op, "implementation": subject.implementation, "plugins": files}
        verdict = check(f"{__name__}:run_cases", sanitizer, request)
        failure = "\n".join(map(str, verdict.findings)) or None
        outcomes.append(Outcome(op, subject.implementation, f"emulator, {sanitizer.value}", len(_CASES), failure))
    return outcomes


def run_cases(device: Gpu, op: str, implementation: str, plugins: list[str]) -> None:
    """Runs in the sanitized process.

    Raises:
        KernelError: a result is wrong.
    """
    (subject,) = subjects_of(op, "emulator", Registry(plugins), device, [implementation])
    ran = 0
    for case in _CASES:
        for parameters in (case, replace(case, has_qk_norm=True)) if op in _WITH_HEAD_NORMS else (case,):
            if subject.refusals(parameters):
                continue
            ran += 1
            try:
                wrong = subject.mismatches(parameters)
            except TinyvllmError as error:
                raise KernelError(f"{error}; input: {parameters}") from error
            if wrong:
                raise KernelError(f"{wrong[0]}; input: {parameters}")
    if not ran:
        raise ConfigError(f"{subject} refuses every case: nothing was checked")
