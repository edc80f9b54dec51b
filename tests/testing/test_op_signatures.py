"""What every op promises: its signature on every device, and that on a GPU it only queues work."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tinyvllm.device import Device
from tinyvllm.devices.cpu import CpuDevice
from tinyvllm.devices.emulator import EmulatorDevice
from tinyvllm.ops.catalogue import OPS
from tinyvllm.registry import Registry
from tinyvllm.testing.case import Bench
from tinyvllm.testing.parameters import MODELS, Parameters
from tinyvllm.testing.subject import CASES, PARTS, Subject, implementations

STEPS = ((1,), (1,) * 9, (1,) * 33, (5, 1, 3), (40, 2))


def test_every_op_is_documented_where_its_signature_is() -> None:
    assert all(inspect.getdoc(op.declaration) for op in OPS.values())


def subjects(op: str, device: Device) -> list[Subject]:
    registry, name = Registry(), device.name
    return [Subject(op, each, name, registry, device) for each in implementations(op, name, registry, device)]


@pytest.mark.parametrize("device", [CpuDevice(), EmulatorDevice()], ids=lambda device: str(device.name))
@pytest.mark.parametrize("op", OPS)
def test_what_serves_an_op_takes_the_arguments_of_its_signature(op: str, device: Device) -> None:
    found = subjects(op, device)
    assert found
    for subject in found:
        bound = subject.bound(Parameters(MODELS[0], (1,), (0,)))
        required = [p for p in inspect.signature(bound).parameters.values() if p.default is p.empty]
        assert len(required) == len(OPS[op].signature.parameters), subject


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("op", OPS)
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
            CASES[op](parameters).run(lambda *arguments: queued.append(arguments), Bench(device))  # noqa: B023
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
