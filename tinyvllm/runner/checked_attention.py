"""An attention plugin with everything that comes out of it held against the rules of its socket."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyvllm.batch import Batch
from tinyvllm.interfaces import Attention, AttentionCall, AttentionSpec
from tinyvllm.plugin_call import PluginCall, PluginName, checked_reasons, shown
from tinyvllm.shapes import Array

_FLOAT32 = np.dtype(np.float32)


class CheckedAttention:
    """Implements ``Attention`` by a plugin's; raises ``PluginError`` for whatever breaks the rules.

    Args:
        attention: what the plugin created.
        plugin: its name.
    """

    def __init__(self, attention: Attention, plugin: PluginName) -> None:
        self._attention, self._plugin = attention, plugin
        self._planning, self._computing = PluginCall(plugin, "plan"), PluginCall(plugin, "forward")

    def supports(self, spec: AttentionSpec) -> list[str]:
        """Reasons why the plugin cannot serve ``spec``; empty if it can."""
        with PluginCall(self._plugin, "supports"):
            reasons = self._attention.supports(spec)
        return checked_reasons(self._plugin, "supports", reasons)

    def plan(self, batch: Batch) -> Any:
        """Whatever the plugin computes once a step."""
        with self._planning:
            return self._attention.plan(batch)

    def forward(self, call: AttentionCall) -> Array:
        """``[T, H, D]`` float32: each query's attention over its own sequence."""
        with self._computing:
            mixed = self._attention.forward(call)
        if not isinstance(mixed, np.ndarray) or mixed.shape != call.query.shape or mixed.dtype != _FLOAT32:
            raise self._plugin.broken("forward", shown(mixed), f"an array of float32 and shape {call.query.shape}")
        return mixed
