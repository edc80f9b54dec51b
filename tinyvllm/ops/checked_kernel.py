"""A kernel plugin with everything that comes out of it held against the rules of its socket."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

from tinyvllm._nearest import did_you_mean
from tinyvllm.device import Device
from tinyvllm.errors import TinyvllmError
from tinyvllm.interfaces import BindContext, Kernel, OpSpec, PreparingKernel
from tinyvllm.layers import Linear
from tinyvllm.ops.catalogue import OPS
from tinyvllm.plugin_call import PluginCall, PluginName, checked_reasons, shown


class CheckedKernel:
    """Implements ``Kernel`` by a plugin's; raises ``PluginError`` for whatever breaks the rules.

    Args:
        kernel: what the plugin created.
        plugin: its name.
    """

    def __init__(self, kernel: Kernel, plugin: PluginName) -> None:
        self._kernel, self._plugin = kernel, plugin

    def ops(self) -> Sequence[str]:
        """Names of the ops that it implements, each the name of an op that exists."""
        with PluginCall(self._plugin, "ops"):
            returned: Any = self._kernel.ops()
            is_sequence = not isinstance(returned, (str, bytes)) and hasattr(returned, "__iter__")
            ops = list(returned) if is_sequence else None
        if ops is None:
            raise self._plugin.broken("ops", shown(returned), "a list of names of ops")
        for op in ops:
            if not isinstance(op, str):
                raise self._plugin.broken("ops", f"{shown(op)} as a name", "a list of names of ops")
            if op not in OPS:
                hint = did_you_mean(op, OPS) or ";"
                raise self._plugin.broken("ops", f"{shown(op)}", f"names of ops{hint} the ops are {', '.join(OPS)}")
        return ops

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        """Reasons why it cannot serve ``spec``; empty if it can."""
        method = f"supports({op!r})"
        with PluginCall(self._plugin, method):
            reasons = self._kernel.supports(op, spec)
        return checked_reasons(self._plugin, method, reasons)

    def bind(self, op: str, context: BindContext) -> Callable[..., Any]:
        """The plugin's op, checked at every call.

        Raises:
            KernelError: the compiler refuses the plugin's source.
            CapacityError: no memory for what the plugin keeps between its kernels.
        """
        method = f"bind({op!r})"
        with PluginCall(self._plugin, method, passes=TinyvllmError):
            bound = self._kernel.bind(op, context)
        if not callable(bound):
            raise self._plugin.broken(method, shown(bound), f"a callable with the signature of {op}")
        signature = OPS[op].signature
        if not _takes(bound, len(signature.parameters)):
            raise self._plugin.broken(method, f"a callable that does not take {signature}", "one that does")
        return _checked(op, bound, self._plugin, context.workspace.device)

    def prepare(self, op: str, layer: Linear) -> Linear:
        """The layer as the plugin wants its weight; as it is where the plugin does not say."""
        if not isinstance(self._kernel, PreparingKernel):
            return layer
        method = f"prepare({op!r})"
        with PluginCall(self._plugin, method, passes=TinyvllmError):
            prepared: Any = self._kernel.prepare(op, layer)
        if not isinstance(prepared, Linear):
            raise self._plugin.broken(method, shown(prepared), "a Linear")
        if not isinstance(prepared.scheme, str):
            got = f"a layer whose scheme is {shown(prepared.scheme)}"
            raise self._plugin.broken(method, got, "the name of a scheme")
        sizes, others = (layer.in_features, layer.out_features), (prepared.in_features, prepared.out_features)
        if others != sizes:
            raise self._plugin.broken(method, f"a layer of {others} features", f"one of {sizes}, in and out")
        return prepared


def _checked(op: str, bound: Callable[..., Any], plugin: PluginName, device: Device) -> Callable[..., None]:
    calling = launching_call(plugin, op, device)

    @functools.wraps(bound)
    def checked(*arguments: Any) -> None:
        with calling:
            returned: Any = bound(*arguments)
        if returned is not None:
            raise plugin.broken(op, shown(returned), "None: an op writes to its outputs")

    return checked


def launching_call(plugin: PluginName, method: str, device: Device) -> PluginCall:
    """A call of a plugin that may launch kernels: the emulator names the plugin if one of them fails later."""
    return _EmulatorCall(plugin, method, device) if hasattr(device, "launched_by") else PluginCall(plugin, method)


class _EmulatorCall(PluginCall):
    """A call on a device that knows, of a kernel that fails later, who launched it."""

    __slots__ = ("_device",)

    def __init__(self, plugin: PluginName, method: str, device: Any) -> None:
        super().__init__(plugin, method)
        self._device = device

    def __enter__(self) -> None:
        self._device.launched_by = self.plugin

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._device.launched_by = None
        return super().__exit__(kind, error, trace)


def _takes(bound: Callable[..., Any], num_arguments: int) -> bool:
    """Whether ``bound`` can be called with so many; true where Python cannot know."""
    try:
        inspect.signature(bound).bind(*[None] * num_arguments)
    except TypeError:
        return False
    except ValueError:  # of a callable that is not written in Python
        return True
    return True
