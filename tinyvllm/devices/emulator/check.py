"""Runs a function on a sanitized emulator, in a process of its own, and reads the sanitizer's reports.

A sanitizer must be in a process before anything else, so it cannot be switched on in a running Python. The function
is named ``package.module:function`` or ``path/to/file.py:function``; it takes the device, then keyword arguments::

    python -m tinyvllm.devices.emulator.check --race tests/emulator/samples.py:run_transpose
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyvllm.devices.compile_cache import default_cache_dir
from tinyvllm.devices.emulator.build import Sanitizer, find_compiler
from tinyvllm.devices.emulator.reports import Finding, read_reports
from tinyvllm.errors import DeviceError, KernelError

_LIBRARY = {Sanitizer.RACE: "libtsan.so", Sanitizer.BOUNDS: "libasan.so"}
_OPTIONS = {
    # Python and NumPy are not instrumented: what they do to memory is not judged.
    Sanitizer.RACE: {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=0:history_size=4"},
    Sanitizer.BOUNDS: {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:exitcode=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
}
_FAILED = "tinyvllm check failed: "
_FINISHED = "tinyvllm check finished"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found; ``log`` is everything the process wrote to its error stream."""

    findings: tuple[Finding, ...]
    log: str

    @property
    def is_clean(self) -> bool:
        """True if nothing was found."""
        return not self.findings

    def raise_if_found(self) -> None:
        """Raises ``KernelError`` with all findings if there are any."""
        if self.findings:
            raise KernelError("\n".join(str(finding) for finding in self.findings))


def check(
    function: str,
    sanitizer: Sanitizer,
    arguments: Mapping[str, object] | None = None,
    *,
    arch: int = 90,
    seed: int = 0,
    cache_dir: Path | None = None,
    timeout_s: float = 600.0,
) -> Verdict:
    """What the sanitizer, or the emulator itself, found while ``function(device, **arguments)`` ran.

    Args:
        function: ``package.module:function`` or ``file.py:function``.
        sanitizer: what to look for.
        arguments: keyword arguments, as JSON can carry them.
        arch: of the emulated card.
        seed: of the order of threads.
        cache_dir: where compiled kernels are kept.
        timeout_s: after which the check counts as failed.

    Raises:
        DeviceError: the sanitizer's library is not installed, or the process broke off without a report.
    """
    request = json.dumps(
        {
            "function": function,
            "sanitizer": sanitizer.value,
            "arguments": dict(arguments or {}),
            "arch": arch,
            "seed": seed,
            "cache_dir": str(cache_dir or default_cache_dir()),
            "path": sys.path,
        }
    )
    command = [sys.executable, "-m", "tinyvllm.devices.emulator.check_child", request]
    log = _run(command, sanitizer, timeout_s)
    if "unexpected memory mapping" in log and shutil.which("setarch"):
        log = _run(["setarch", "-R", *command], sanitizer, timeout_s)  # address randomisation beyond its means
    findings = read_reports(log)
    failed = [line.removeprefix(_FAILED) for line in log.splitlines() if line.startswith(_FAILED)]
    findings += tuple(Finding("emulator", "", message) for message in failed)
    if not findings and _FINISHED not in log:
        raise DeviceError(f"the {sanitizer.value} check of {function} broke off:\n{log[-3000:]}")
    return Verdict(findings, log)


def _run(command: list[str], sanitizer: Sanitizer, timeout_s: float) -> str:
    environment = {
        **os.environ,
        **_OPTIONS.get(sanitizer, {}),
        # Threads of BLAS are slow under a sanitizer and beside the point.
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    if sanitizer in _LIBRARY:
        environment["LD_PRELOAD"] = str(_sanitizer_library(_LIBRARY[sanitizer]))
    try:
        done = subprocess.run(  # noqa: S603  # this Python, on this package
            command, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"the {sanitizer.value} check did not finish within {timeout_s:g} s") from error
    sys.stdout.write(done.stdout)  # what the kernels print
    sys.stdout.flush()
    return done.stderr


def _sanitizer_library(name: str) -> Path:
    found = Path(find_compiler().run([f"-print-file-name={name}"], name).strip())
    if not found.is_absolute() or not found.exists():
        raise DeviceError(f"{name} is not installed with {find_compiler().command}; it comes with gcc")
    return found.resolve()


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status is 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tinyvllm.devices.emulator.check", description=__doc__)
    parser.add_argument("function", help="package.module:function or file.py:function")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--race", action="store_const", dest="sanitizer", const=Sanitizer.RACE)
    kind.add_argument("--bounds", action="store_const", dest="sanitizer", const=Sanitizer.BOUNDS)
    parser.add_argument("--arguments", default="{}", help="keyword arguments of the function, as JSON")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args(arguments)
    verdict = check(parsed.function, parsed.sanitizer, json.loads(parsed.arguments), arch=parsed.arch, seed=parsed.seed)
    lines = [str(finding) for finding in verdict.findings] or ["nothing found"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if verdict.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
