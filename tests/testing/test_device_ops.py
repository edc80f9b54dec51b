"""What every op of a device promises: its signature, and that it only queues work."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tinyvllm.devices.emulator import EmulatorDevice
from tinyvllm.ops.catalogue import OPS
from tinyvllm.ops.device_ops import DeviceOps
from tinyvllm.registry import Registry
from tinyvllm.testing.case import Bench
from tinyvllm.testing.parameters import MODELS, Parameters
from tinyvllm.testing.subject import CASES, PARTS, Subject, implementations

ON_DEVICE = [op.name for op in OPS.values() if op.is_on_device]
STEPS = ((1,), (1,) * 9, (1,) * 33, (5, 1, 3), (40, 2))


def test_every_op_of_a_device_has_a_documented_signature_and_no_other_has() -> None:
    signatures = {name: value for name, value in vars(DeviceOps).items() if not name.startswith("_")}
    assert set(signatures) == set(ON_DEVICE)
    assert all(inspect.getdoc(signature) for signature in signatures.values())


def subjects(op: str, device: EmulatorDevice) -> list[Subject]:
    registry = Registry()
    return [Subject(op, name, "emulator", registry, device) for name in implementations(op, "emulator", registry)]


@pytest.mark.parametrize("op", ON_DEVICE)
def test_what_serves_an_op_takes_the_arguments_of_its_signature(op: str) -> None:
    signature = inspect.signature(getattr(DeviceOps, op))
    for subject in subjects(op, EmulatorDevice()):
        bound = subject.bound(Parameters(MODELS[0], (1,), (0,)))
        required = [p for p in inspect.signature(bound).parameters.values() if p.default is p.empty]
        assert len(required) == len(signature.parameters) - 1, subject  # without self


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("op", ON_DEVICE)
def test_an_op_that_has_run_once_neither_allocates_nor_waits(
    op: str, batch_invariant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = EmulatorDevice()
    for subject in subjects(op, device):
        if batch_invariant and subject.implementation == PARTS:
            continue
        for step in STEPS:
            parameters = Parameters(
                MODELS[1], step, (17,) * len(step), batch_invariant=batch_invariant, has_bias=True, max_logits_rows=40
            )
            if subject.implementation == "hopper" and batch_invariant:
                assert "another order" in subject.refusals(parameters)[0]
                continue
            queued: list[tuple[Any, ...]] = []
            CASES[op](parameters).on_device(lambda *arguments: queued.append(arguments), Bench(device))  # noqa: B023
            run = subject.bound(parameters)
            run(*queued[0])
            device.synchronize()
            with monkeypatch.context() as forbidden:
                for owner, name in (
                    (device.memory, "alloc"), (device.memory, "upload"), (device.memory, "download"),
                    (device.memory, "start_download"), (device, "synchronize"), (device, "compile"),
                ):  # fmt: skip
                    forbidden.setattr(owner, name, _refused(f"{subject} calls {name}"))
                with device.capture() as graph:
                    run(*queued[0])
            assert graph.tasks


def _refused(message: str) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError(message)

    return refuse
