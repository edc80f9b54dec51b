"""The hooks through which plugins enter, built-in ones included.

A plugin module marks its function with ``hookimpl``; the function returns a list of
:class:`~tinyvllm.interfaces.Plugin`. Hooks run once, when an engine starts.
"""

from __future__ import annotations

import pluggy

from tinyvllm.interfaces import Attention, HostSampler, Kernel, Loader, Plugin, Sampler, Scheduler

PROJECT = "tinyvllm"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """One hook a socket."""

    @hookspec
    def register_loaders(self) -> list[Plugin[Loader]]:  # type: ignore[empty-body]
        """Loaders: readers of checkpoint folders."""

    @hookspec
    def register_attention(self) -> list[Plugin[Attention]]:  # type: ignore[empty-body]
        """Attention over the paged KV cache."""

    @hookspec
    def register_schedulers(self) -> list[Plugin[Scheduler]]:  # type: ignore[empty-body]
        """Schedulers: what each step computes."""

    @hookspec
    def register_samplers(self) -> list[Plugin[Sampler | HostSampler]]:  # type: ignore[empty-body]
        """Samplers: logits to tokens."""

    @hookspec
    def register_kernels(self) -> list[Plugin[Kernel]]:  # type: ignore[empty-body]
        """Kernels: implementations of named ops."""
