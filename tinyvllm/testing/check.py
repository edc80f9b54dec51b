"""Property tests of an op: whatever the parameters, an implementation equals the definition within a computed bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvllm._nearest import did_you_mean
from tinyvllm.device import Buffer, Device
from tinyvllm.devices.cpu import CpuDevice
from tinyvllm.errors import ConfigError, DeviceError, KernelError, TinyvllmError
from tinyvllm.interfaces import Kind
from tinyvllm.ops.catalogue import OPS
from tinyvllm.registry import Registry, State
from tinyvllm.testing.attention_subject import ATTENTION, attention_subjects, why_no_attention
from tinyvllm.testing.case import Mismatch
from tinyvllm.testing.parameters import Parameters, drawn, strategies
from tinyvllm.testing.subject import Subject, subjects, why_not

DEVICES = ("cpu", "emulator", "cuda")
_NUM_RUNS = 40
"""Of a case that was wrong once, to see whether it always is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one implementation fared: ``failure`` is what was wrong, on which input and where, or None."""

    op: str
    implementation: str
    device: str
    num_cases: int
    failure: str | None

    @property
    def is_right(self) -> bool:
        """Whether nothing was wrong."""
        return self.failure is None


def check_op(
    op: str,
    *,
    device: str | None = None,
    implementation: str | None = None,
    plugins: Sequence[str | Path] = (),
    num_cases: int = 50,
) -> list[Outcome]:
    """Compare implementations of ``op`` with its NumPy definition.

    Args:
        op: the op, or ``attention``.
        device: ``cpu``, ``emulator`` or ``cuda``; None: each that is present.
        implementation: a plugin of the socket, or ``parts`` for a fused op made of its parts; None: each, or those of
            ``plugins`` if there are any.
        plugins: local plugins, ``./file.py`` or ``package.module``.
        num_cases: of each implementation on each device.
    Returns:
        an outcome for each implementation.
    Raises:
        ConfigError: no such op, or hypothesis is not installed.
        PluginError: a plugin cannot be loaded, or nothing implements the op there.
        DeviceError: the device that was named is not present.
    """
    strategies()  # says what is missing before anything is compiled
    found = find_subjects(op, device, implementation, plugins)
    return [_checked(subject, num_cases) for subject in found]


def find_subjects(
    op: str, device: str | None, implementation: str | None, plugins: Sequence[str | Path]
) -> list[Subject]:
    """What :func:`check_op` checks; raises as it does."""
    names = (*OPS, ATTENTION)
    if op not in names:
        raise ConfigError(f"there is no op {op!r}{did_you_mean(op, names) or ';'} the ops are {', '.join(names)}")
    registry = Registry([str(plugin) for plugin in plugins])
    kind = Kind.ATTENTION if op == ATTENTION else Kind.KERNEL
    local = [info.name for info in registry.available() if info.kind is kind and info.state is State.LOCAL]
    only = [implementation] if implementation else local
    found: list[Subject] = []
    for name in [device] if device else DEVICES:
        try:
            opened = open_device(name)
        except (DeviceError, KernelError):
            if device:
                raise
            continue
        found += subjects_of(op, name, registry, opened, only)
    if not found:
        where = f"on {device}" if device else "on any device that is present"
        if not only:
            raise ConfigError(f"nothing implements {op} {where}; see python -m tinyvllm kernels list --op {op}")
        asked = [device] if device else DEVICES
        if op == ATTENTION:
            raise ConfigError("; ".join(why_no_attention(name, registry, asked) for name in only))
        raise ConfigError("; ".join(why_not(op, name, registry, asked) for name in only))
    return found


def subjects_of(
    op: str, device_name: str, registry: Registry, device: Device, only: Sequence[str]
) -> Sequence[Subject]:
    """Implementations of an op, or of attention, on a device; see :func:`~tinyvllm.testing.subject.subjects`."""
    if op == ATTENTION:
        return attention_subjects(device_name, registry, device, only)
    return subjects(op, device_name, registry, device, only)


def open_device(name: str) -> Device:
    """The device.

    Raises:
        DeviceError: it is not present.
    """
    if name == "cpu":
        return CpuDevice()
    if name == "emulator":
        from tinyvllm.devices.emulator.device import EmulatorDevice

        return EmulatorDevice()
    from tinyvllm.devices.cuda import CudaDevice

    return CudaDevice()


def _checked(subject: Subject, num_cases: int) -> Outcome:
    strategy = drawn()
    from hypothesis import HealthCheck, Phase, given, settings

    # A case is run once: of a kernel that is right only now and then hypothesis would say nothing but that it is so.
    known: dict[Parameters, _WrongError | None] = {}
    ran = 0

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(parameters=strategy)
    def equals_its_definition(parameters: Parameters) -> None:
        nonlocal ran
        if parameters not in known:
            _assume_served(subject, parameters)
            known[parameters] = _wrong(subject, parameters)
        ran += 1
        wrong = known[parameters]
        if wrong is not None:
            raise wrong

    failure = None
    try:
        equals_its_definition()
    except _WrongError as wrong:
        failure = wrong.described(subject)
    if not ran:
        failure = "it refuses every case: nothing was checked"
    return Outcome(subject.op, subject.implementation, subject.device_name, ran, failure)


def _assume_served(subject: Subject, parameters: Parameters) -> None:
    """Have hypothesis draw another case if this one is refused."""
    from hypothesis import assume

    assume(not subject.refusals(parameters))


def _wrong(subject: Subject, parameters: Parameters) -> _WrongError | None:
    try:
        mismatches = subject.mismatches(parameters)
    except TinyvllmError as error:
        return _WrongError(str(error), parameters)
    if mismatches:
        return _WrongError("\n".join(map(str, mismatches)), parameters, mismatches[0])
    return None


class _WrongError(Exception):
    """A case that failed; hypothesis looks for the simplest."""

    def __init__(self, message: str, parameters: Parameters, mismatch: Mismatch | None = None) -> None:
        super().__init__(message)
        self._parameters, self._mismatch = parameters, mismatch

    def described(self, subject: Subject) -> str:
        """What is wrong, who wrote it where that can be known, and with which input."""
        lines = [*_unsteady(subject, self._parameters, str(self)), str(self)]
        if self._mismatch is not None and subject.device_name == "emulator":
            lines += writer_of(subject, self._parameters, self._mismatch)
        return "\n".join([*lines, f"input: {self._parameters}"])


def _unsteady(subject: Subject, parameters: Parameters, first: str) -> list[str]:
    """A line that says so if the same inputs give other results in other runs; ``first`` is what the first one gave."""
    again = [_wrong(subject, parameters) for _ in range(_NUM_RUNS - 1)]
    failures = [first, *(str(each) for each in again if each is not None)]
    if len(failures) == _NUM_RUNS and len(set(failures)) == 1:
        return []
    remedy = "" if subject.device_name == "cpu" else ": a missing barrier? --race names the lines"
    return [f"differs from run to run ({len(failures)} of {_NUM_RUNS} wrong){remedy}"]


def writer_of(subject: Subject, parameters: Parameters, mismatch: Mismatch) -> list[str]:
    """A line about which kernel, block and thread wrote a wrong result last, in a second run of the case."""
    from tinyvllm.devices.emulator.device import EmulatorDevice

    device = EmulatorDevice(can_watch=True)
    again = subject.on(device)
    queued: list[tuple[Any, ...]] = []
    buffers = subject.case(parameters).run(lambda *arguments: queued.append(arguments), again.bench(parameters))
    if mismatch.result not in buffers:
        return []
    watch = device.watch(_element(buffers[mismatch.result], mismatch.index))
    for arguments in queued:
        again.bound(parameters)(*arguments)
    device.synchronize()
    return [f"written by {watch.writer or 'nobody'}"]


def _element(buffer: Buffer, index: tuple[int, ...]) -> Buffer:
    offset = 0
    for i, size in zip(index, buffer.shape, strict=True):
        offset = offset * size + i
    return buffer.view((1,), offset_bytes=offset * buffer.dtype.itemsize)
