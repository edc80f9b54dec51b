"""An implementation of an op on a device, bound as an engine would bind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyvllm.device import Gpu
from tinyvllm.errors import PluginError, TinyvllmError
from tinyvllm.interfaces import BindContext, Kernel, Kind, OpSpec, PluginContext
from tinyvllm.ops.catalogue import OPS
from tinyvllm.ops.checked_kernel import CheckedKernel
from tinyvllm.ops.device_values import DeviceLimits, Workspace
from tinyvllm.ops.table import DEFAULT_KERNELS, OpTable
from tinyvllm.registry import Registry, State
from tinyvllm.testing.attention_cases import AttentionCase, AttentionDecodeCase, AttentionPrefillCase
from tinyvllm.testing.case import Bench, Case, Mismatch, other_bits
from tinyvllm.testing.fused_cases import GateUpCase, HeadArgmaxCase, LinearResidualCase, NormHeadCase, QkvCase
from tinyvllm.testing.numbers import BF16_ROUNDOFF, Array
from tinyvllm.testing.parameters import MAX_SEQUENCES, MAX_TOKENS, MODELS, Parameters
from tinyvllm.testing.rope_cases import KvAppendCase, RopeAppendCase, RopeCase
from tinyvllm.testing.simple_cases import (
    AddCase,
    ArgmaxCase,
    EmbeddingCase,
    LinearCase,
    LmHeadCase,
    RmsNormCase,
    SiluMulCase,
)

PARTS = "parts"
"""The name of a fused op made of its parts, where others have the name of a plugin."""

_MADE: tuple[type[Case], ...] = (
    EmbeddingCase, RmsNormCase, LinearCase, AddCase, RopeCase, KvAppendCase, RopeAppendCase, SiluMulCase, LmHeadCase,
    ArgmaxCase, AttentionDecodeCase, AttentionPrefillCase, AttentionCase, QkvCase, LinearResidualCase, GateUpCase,
    NormHeadCase, HeadArgmaxCase,
)  # fmt: skip
CASES = {case.op: case for case in _MADE}
"""How each op is checked."""


class Subject:
    """One implementation of one op on one device.

    Args:
        op: the op.
        implementation: a kernel plugin's name, or ``PARTS``.
        device_name: ``cpu``, ``emulator`` or ``cuda``.
        registry: where plugins come from.
        device: opened; None for the CPU.
    """

    def __init__(self, op: str, implementation: str, device_name: str, registry: Registry, device: Gpu | None) -> None:
        self.op, self.implementation, self.device_name, self.device = op, implementation, device_name, device
        self._registry = registry
        self._bound: dict[Any, Callable[..., Any]] = {}

    def __str__(self) -> str:
        """As tables name it."""
        return f"{self.op} by {self.implementation} on {self.device_name}"

    def on(self, device: Gpu) -> Subject:
        """The same implementation on another device of the same name."""
        return Subject(self.op, self.implementation, self.device_name, self._registry, device)

    def refusals(self, parameters: Parameters) -> list[str]:
        """Reasons why it does not serve an engine of these parameters."""
        if self.implementation == PARTS:
            return []
        kernel = create_kernel(self._registry, self.implementation, self.device_name, parameters)
        return kernel.supports(self.op, spec_of(self.device_name, parameters, self.device))

    def bound(self, parameters: Parameters) -> Callable[..., Any]:
        """The op for an engine of these parameters; made once for each such engine.

        Raises:
            PluginError: it does not serve them.
        """
        limits = _limits(parameters)
        spec = spec_of(self.device_name, parameters, self.device)
        if (spec, limits) not in self._bound:
            self._bound[spec, limits] = self._bind(spec, limits, parameters)
        return self._bound[spec, limits]

    def mismatches(self, parameters: Parameters) -> list[Mismatch]:
        """What is wrong with one case: results, or with ``batch_invariant`` a row whose bits depend on its company.

        Raises:
            KernelError: a launch was refused, or failed.
        """
        case = CASES[self.op](parameters)
        got = self._results(case)
        wrong = case.mismatches(got, 0.0 if self.device is None else BF16_ROUNDOFF)
        if not wrong and parameters.batch_invariant and case.row_arrays:
            alone = self._results(case.last_row())
            wrong = [each for name in got for each in other_bits(name, got[name][-1:], alone[name])]
        return wrong

    def _results(self, case: Case) -> dict[str, Array]:
        op = self.bound(case.parameters)
        if self.device is None:
            on_host = case.on_host(op, lambda array: array.astype(np.float32))
            return {name: np.asarray(array) for name, array in on_host.items()}
        on_device = case.on_device(op, Bench(self.device))
        return {name: self.device.memory.download(buffer) for name, buffer in on_device.items()}

    def _bind(self, spec: OpSpec, limits: DeviceLimits, parameters: Parameters) -> Callable[..., Any]:
        workspace = None if self.device is None else Workspace(self.device, limits)
        defaults = {
            name: create_kernel(self._registry, name, self.device_name, parameters)
            for name in DEFAULT_KERNELS[self.device_name]
        }
        if self.implementation == PARTS:
            table = OpTable(spec, defaults, {}, workspace)
            composed = OPS[self.op].composed(BindContext(spec, table.op, workspace))
            if composed is None:
                raise PluginError(f"{self.op} has no parts on {self.device_name}")
            return composed
        kernel = create_kernel(self._registry, self.implementation, self.device_name, parameters)
        return OpTable(spec, defaults, {self.op: (self.implementation, kernel)}, workspace).op(self.op)


def subjects(
    op: str, device_name: str, registry: Registry, device: Gpu | None, only: Sequence[str] = ()
) -> list[Subject]:
    """Every implementation of ``op`` on a device, the composition of a fused op's parts included.

    Args:
        op: the op.
        device_name: of ``device``.
        registry: where plugins come from.
        device: opened; None for the CPU.
        only: names of implementations; empty for all.
    Raises:
        PluginError: a plugin that is named cannot be created.
    """
    if not OPS[op].is_on(device_name):
        return []
    names = [name for name in implementations(op, device_name, registry, device) if not only or name in only]
    return [Subject(op, name, device_name, registry, device) for name in names]


def implementations(op: str, device_name: str, registry: Registry, device: Gpu | None = None) -> list[str]:
    """Names of the kernel plugins that implement ``op`` on a device, then ``PARTS`` where it is made of some."""
    if not OPS[op].is_on(device_name):
        return []
    smallest = Parameters(MODELS[0], (1,), (0,))
    found = []
    for info in registry.available():
        if info.kind is not Kind.KERNEL or info.state not in (State.READY, State.LOCAL):
            continue
        try:
            kernel = create_kernel(registry, info.name, device_name, smallest)
            if op in kernel.ops() and not kernel.supports(op, spec_of(device_name, smallest, device)):
                found.append(info.name)
        except TinyvllmError:
            continue  # a broken plugin matters once it is named: plugins check says why
    return [*found, *([PARTS] if OPS[op].parts_on(device_name) else [])]


def why_not(op: str, name: str, registry: Registry, device_names: Sequence[str]) -> str:
    """Why the implementation ``name`` serves ``op`` on none of these devices, in a sentence.

    Raises:
        PluginError: there is no such plugin, it cannot be created, or it breaks the rules of its socket.
    """
    if name == PARTS:
        return f"{op} is not made of parts on {' or '.join(device_names)}"
    smallest = Parameters(MODELS[0], (1,), (0,))
    reasons: list[str] = []
    for device_name in device_names:
        kernel = create_kernel(registry, name, device_name, smallest)
        if op not in kernel.ops():
            return f"{name} does not implement {op}; it implements {', '.join(kernel.ops()) or 'nothing'}"
        if not OPS[op].is_on(device_name):
            reasons.append(f"a model calls no such op on {device_name}")
        else:
            found = kernel.supports(op, spec_of(device_name, smallest, None))
            reasons.append("; ".join(found) or f"device {device_name} is not present")
    return f"{name} cannot serve {op}: {'; '.join(dict.fromkeys(reasons))}"


def create_kernel(registry: Registry, name: str, device_name: str, parameters: Parameters) -> Kernel:
    """The kernel plugin ``name`` with its default options, checked as an engine checks it.

    Raises:
        PluginError: it does not exist, cannot be created, or its options have no defaults.
    """
    plugin = registry.get(Kind.KERNEL, name)
    try:
        options = plugin.options()
    except ValueError as error:
        raise PluginError(f"kernel {name!r} needs options: {error}") from error
    limits = _limits(parameters)
    kernel: Kernel = registry.create(
        Kind.KERNEL,
        name,
        PluginContext(
            options=options,
            device=device_name,
            model=parameters.model,
            max_model_len=parameters.max_context,
            max_num_seqs=limits.max_seqs,
            max_num_batched_tokens=limits.max_tokens,
            block_size=parameters.block_size,
            num_blocks=0,
            batch_invariant=parameters.batch_invariant,
            seed=0,
        ),
    )
    return CheckedKernel(kernel, registry.named(Kind.KERNEL, name))


def spec_of(device_name: str, parameters: Parameters, device: Gpu | None) -> OpSpec:
    """What an engine of these parameters asks of an op; without a device, of any card."""
    is_cpu = device_name == "cpu"
    return OpSpec(
        device=device_name,
        model=parameters.model,
        dtype="float32" if is_cpu else "bfloat16",
        weight_scheme="dense" if is_cpu else "rows",
        block_size=parameters.block_size,
        batch_invariant=parameters.batch_invariant,
        attention="paged",
        sampler="default",
        has_qk_norm=parameters.has_qk_norm,
        sliding_windows=(parameters.sliding_window,),
        arch=None if device is None else device.properties.arch,
    )


def _limits(parameters: Parameters) -> DeviceLimits:
    return DeviceLimits(
        max_tokens=max(MAX_TOKENS, parameters.num_rows),
        max_seqs=max(MAX_SEQUENCES, len(parameters.num_tokens)),
        max_context_len=parameters.max_context,
        block_size=parameters.block_size,
        max_logits_rows=parameters.max_logits_rows,
        batch_invariant=parameters.batch_invariant,
    )
