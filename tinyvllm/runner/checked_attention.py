"""An attention plugin with everything that comes out of it held against the rules of its socket."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyvllm.batch import Batch, BatchTensors
from tinyvllm.device import Device, Tensor
from tinyvllm.errors import TinyvllmError
from tinyvllm.interfaces import Attention, AttentionCall, AttentionContext, AttentionSpec, BoundAttention
from tinyvllm.ops.checked_kernel import launching_call
from tinyvllm.plugin_call import PluginCall, PluginName, checked_reasons, shown
from tinyvllm.shapes import Int32

_INT32 = np.dtype(np.int32)


class CheckedAttention:
    """Implements ``Attention`` by a plugin's; raises ``PluginError`` for whatever breaks the rules.

    Args:
        attention: what the plugin created.
        plugin: its name.
    """

    def __init__(self, attention: Attention, plugin: PluginName) -> None:
        self._attention, self._plugin = attention, plugin

    def supports(self, spec: AttentionSpec) -> list[str]:
        """Reasons why the plugin cannot serve ``spec``; empty if it can."""
        with PluginCall(self._plugin, "supports"):
            reasons = self._attention.supports(spec)
        return checked_reasons(self._plugin, "supports", reasons)

    def bind(self, context: AttentionContext) -> CheckedBoundAttention:
        """The attention of one engine.

        Raises:
            KernelError: the compiler refuses the plugin's source.
            CapacityError: no memory for what the plugin keeps.
        """
        with PluginCall(self._plugin, "bind", passes=TinyvllmError):
            bound: Any = self._attention.bind(context)
            is_bound = isinstance(bound, BoundAttention)
        if not is_bound:
            raise self._plugin.broken("bind", shown(bound), "an object with host_plan, plan and forward")
        return CheckedBoundAttention(bound, self._plugin, context.workspace.device)


class CheckedBoundAttention:
    """Implements ``BoundAttention`` by a plugin's; raises ``PluginError`` for whatever breaks the rules.

    Args:
        attention: what the plugin's ``bind`` returned.
        plugin: its name.
        device: where it runs.
    """

    def __init__(self, attention: BoundAttention, plugin: PluginName, device: Device) -> None:
        self._attention, self._plugin = attention, plugin
        self._planning_host = PluginCall(plugin, "host_plan")
        self._planning = launching_call(plugin, "plan", device)
        self._computing = launching_call(plugin, "forward", device)
        self._is_first = True
        self._host_plan_size: int | None = None

    def host_plan(self, batch: Batch) -> Int32 | None:
        """``[N]`` int32, of the same size for all steps, or None for all of them."""
        with self._planning_host:
            plan: Any = self._attention.host_plan(batch)
        is_array = isinstance(plan, np.ndarray) and plan.dtype == _INT32 and plan.ndim == 1
        if plan is not None and not is_array:
            raise self._plugin.broken("host_plan", shown(plan), "None, or a one-dimensional array of int32")
        size = None if plan is None else len(plan)
        if self._is_first:
            self._is_first, self._host_plan_size = False, size
        if size != self._host_plan_size:
            raise self._plugin.broken("host_plan", _of_size(size), f"{_of_size(self._host_plan_size)}, as at first")
        return None if plan is None else np.asarray(plan)

    def plan(self, batch: BatchTensors, host_plan: Tensor | None) -> Any:
        """Whatever the plugin computes once a step."""
        with self._planning:
            return self._attention.plan(batch, host_plan)

    def forward(self, call: AttentionCall) -> None:
        """Each query's attention over its own sequence, written to ``call.out``."""
        attention: Any = self._attention
        with self._computing:
            returned = attention.forward(call)
        if returned is not None:
            raise self._plugin.broken("forward", shown(returned), "None: forward writes to call.out")


def _of_size(size: int | None) -> str:
    return "None" if size is None else f"an array of {size} numbers"
