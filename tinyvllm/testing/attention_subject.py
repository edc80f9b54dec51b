"""Attention plugins as subjects of the property tests: the same checks as of an op, by the definition of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinyvllm.device import Device
from tinyvllm.errors import TinyvllmError
from tinyvllm.interfaces import AttentionContext, Kind
from tinyvllm.registry import Registry, State
from tinyvllm.runner.checked_attention import CheckedAttention
from tinyvllm.testing.attention_cases import AttentionCase
from tinyvllm.testing.case import Bench, limits_of
from tinyvllm.testing.parameters import MODELS, Parameters
from tinyvllm.testing.subject import Subject, create_plugin
from tinyvllm.workspace import Workspace

ATTENTION = AttentionCase.op
"""The name that stands where others have that of an op."""
_SMALLEST = Parameters(MODELS[0], (1,), (0,))


class AttentionSubject(Subject):
    """One attention plugin on one device.

    Args:
        implementation: the plugin's name.
        device_name: ``cpu``, ``emulator`` or ``cuda``.
        registry: where plugins come from.
        device: opened; None: it is only asked what it serves.
    """

    def __init__(self, implementation: str, device_name: str, registry: Registry, device: Device | None) -> None:
        super().__init__(ATTENTION, implementation, device_name, registry, device)

    def on(self, device: Device) -> AttentionSubject:
        """The same plugin on another device of the same name."""
        return AttentionSubject(self.implementation, self.device_name, self._registry, device)

    def case(self, parameters: Parameters) -> AttentionCase:
        """What it is checked by."""
        return AttentionCase(parameters)

    def refusals(self, parameters: Parameters) -> list[str]:
        """Reasons why it does not serve an engine of these parameters."""
        return self._plugin(parameters).supports(self.case(parameters).spec(self.device_name))

    def bound(self, parameters: Parameters) -> Callable[..., None]:
        """A step of one layer, by the plugin bound to an engine of these parameters.

        Raises:
            PluginError: it breaks a rule of its socket.
        """
        assert self.device is not None, "the device is not open"
        case = self.case(parameters)
        key = case.spec(self.device_name), limits_of(parameters)
        if key not in self._bound:
            context = AttentionContext(key[:1], Workspace(self.device, key[1]))
            self._bound[key] = case.attend(self._plugin(parameters).bind(context))
        return self._bound[key]

    def bench(self, parameters: Parameters) -> Bench:
        """Where a case's tensors are put."""
        assert self.device is not None, "the device is not open"
        return Bench(self.device)

    def _plugin(self, parameters: Parameters) -> CheckedAttention:
        plugin = create_plugin(self._registry, Kind.ATTENTION, self.implementation, self.device_name, parameters)
        return CheckedAttention(plugin, self._registry.named(Kind.ATTENTION, self.implementation))


def attention_subjects(
    device_name: str, registry: Registry, device: Device | None, only: Sequence[str] = ()
) -> list[AttentionSubject]:
    """Every attention plugin that serves a device; arguments as of :func:`~tinyvllm.testing.subject.subjects`."""
    found = []
    for info in registry.available():
        is_there = info.kind is Kind.ATTENTION and info.state in (State.READY, State.LOCAL)
        if not is_there or (only and info.name not in only):
            continue
        subject = AttentionSubject(info.name, device_name, registry, device)
        try:
            if not subject.refusals(_SMALLEST):
                found.append(subject)
        except TinyvllmError:
            continue  # a broken plugin matters once it is named: plugins check says why
    return found


def why_no_attention(name: str, registry: Registry, device_names: Sequence[str]) -> str:
    """Why the attention ``name`` serves none of these devices, in a sentence.

    Raises:
        PluginError: there is no such plugin, it cannot be created, or it breaks the rules of its socket.
    """
    reasons = [
        "; ".join(AttentionSubject(name, each, registry, None).refusals(_SMALLEST)) or f"device {each} is not present"
        for each in device_names
    ]
    return f"attention {name} cannot serve: {'; '.join(dict.fromkeys(reasons))}"
