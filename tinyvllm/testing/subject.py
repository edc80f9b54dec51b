"""An implementation of an op on a device, bound as an engine would bind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinyvllm.device import Device, Gpu
from tinyvllm.errors import PluginError, TinyvllmError
from tinyvllm.interfaces import BindContext, Kernel, Kind, OpSpec, PluginContext, PreparingKernel
from tinyvllm.layers import Linear
from tinyvllm.ops.catalogue import OPS
from tinyvllm.ops.checked_kernel import CheckedKernel
from tinyvllm.ops.table import DEFAULT_KERNELS, OpTable
from tinyvllm.registry import Registry, State
from tinyvllm.testing.case import Bench, Case, Mismatch, limits_of, other_bits
from tinyvllm.testing.fused_cases import GateUpCase, HeadArgmaxCase, LinearResidualCase, NormHeadCase, QkvCase
from tinyvllm.testing.numbers import BF16_ROUNDOFF, Array
from tinyvllm.testing.parameters import MODELS, Parameters
from tinyvllm.testing.rope_cases import RopeAppendCase
from tinyvllm.testing.simple_cases import (
    AddCase,
    ArgmaxCase,
    EmbeddingCase,
    GeluMulCase,
    LinearCase,
    LmHeadCase,
    NormColumnsCase,
    RmsNormCase,
    ScaleCase,
    SiluMulCase,
)
from tinyvllm.workspace import Workspace

PARTS = "parts"
"""The name of a fused op made of its parts, where others have the name of a plugin."""

_MADE: tuple[type[Case], ...] = (
    EmbeddingCase, RmsNormCase, LinearCase, AddCase, RopeAppendCase, SiluMulCase, LmHeadCase, ArgmaxCase, QkvCase,
    LinearResidualCase, GateUpCase, NormHeadCase, HeadArgmaxCase, GeluMulCase, ScaleCase, NormColumnsCase,
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
        device: opened; None: it is only asked what it serves.
    """

    def __init__(
        self, op: str, implementation: str, device_name: str, registry: Registry, device: Device | None
    ) -> None:
        self.op, self.implementation, self.device_name, self.device = op, implementation, device_name, device
        self._registry = registry
        self._bound: dict[Any, Callable[..., Any]] = {}

    def __str__(self) -> str:
        """As tables name it."""
        return f"{self.op} by {self.implementation} on {self.device_name}"

    def on(self, device: Device) -> Subject:
        """The same implementation on another device of the same name."""
        return Subject(self.op, self.implementation, self.device_name, self._registry, device)

    def refusals(self, parameters: Parameters) -> list[str]:
        """Reasons why it does not serve an engine of these parameters."""
        if self.implementation == PARTS:
            return []
        kernel = create_kernel(self._registry, self.implementation, self.device_name, parameters)
        return kernel.supports(self.op, self._spec(parameters))

    def bound(self, parameters: Parameters) -> Callable[..., Any]:
        """The op for an engine of these parameters; made once for each such engine.

        Raises:
            PluginError: it does not serve them.
        """
        limits, spec = limits_of(parameters), self._spec(parameters)
        if (spec, limits) not in self._bound:
            self._bound[spec, limits] = self._bind(spec, parameters)
        return self._bound[spec, limits]

    def mismatches(self, parameters: Parameters) -> list[Mismatch]:
        """What is wrong with one case: results, or with ``batch_invariant`` a row whose bits depend on its company.

        Raises:
            KernelError: a launch was refused, or failed.
        """
        case = CASES[self.op](parameters)
        got = self._results(case)
        wrong = case.mismatches(got, BF16_ROUNDOFF if isinstance(self.device, Gpu) else 0.0)
        if not wrong and parameters.batch_invariant and case.row_arrays:
            alone = self._results(case.last_row())
            wrong = [each for name in got for each in other_bits(name, got[name][-1:], alone[name])]
        return wrong

    def bench(self, parameters: Parameters) -> Bench:
        """Where a case's tensors are put, layers as the implementation wants them."""
        assert self.device is not None, "the device is not open"
        kernel = None
        if self.implementation != PARTS:
            kernel = create_kernel(self._registry, self.implementation, self.device_name, parameters)

        def prepared(layer: Linear) -> Linear:
            return kernel.prepare(self.op, layer) if isinstance(kernel, PreparingKernel) else layer

        return Bench(self.device, prepared)

    def _results(self, case: Case) -> dict[str, Array]:
        bench = self.bench(case.parameters)
        results = case.run(self.bound(case.parameters), bench)
        return {name: bench.device.memory.download(tensor) for name, tensor in results.items()}

    def _spec(self, parameters: Parameters) -> OpSpec:
        return spec_of(self.device_name, parameters, self.device, CASES[self.op])

    def _bind(self, spec: OpSpec, parameters: Parameters) -> Callable[..., None]:
        assert self.device is not None, "the device is not open"
        workspace = Workspace(self.device, limits_of(parameters))
        defaults = {
            name: create_kernel(self._registry, name, self.device_name, parameters)
            for name in DEFAULT_KERNELS[self.device_name]
        }
        if self.implementation == PARTS:
            table, compose = OpTable(spec, defaults, {}, workspace), OPS[self.op].compose
            if compose is None:
                raise PluginError(f"{self.op} has no parts")
            return compose(BindContext(spec, lambda name: table.op_for(name, spec), workspace))
        kernel = create_kernel(self._registry, self.implementation, self.device_name, parameters)
        table = OpTable(spec, defaults, {self.op: (self.implementation, kernel)}, workspace)
        return table.op_for(self.op, spec)


def subjects(
    op: str, device_name: str, registry: Registry, device: Device | None, only: Sequence[str] = ()
) -> list[Subject]:
    """Every implementation of ``op`` on a device, the composition of a fused op's parts included.

    Args:
        op: the op.
        device_name: of ``device``.
        registry: where plugins come from.
        device: opened; None: implementations are only listed.
        only: names of implementations; empty for all.
    Raises:
        PluginError: a plugin that is named cannot be created.
    """
    names = [name for name in implementations(op, device_name, registry, device) if not only or name in only]
    return [Subject(op, name, device_name, registry, device) for name in names]


def implementations(op: str, device_name: str, registry: Registry, device: Device | None = None) -> list[str]:
    """Names of the kernel plugins that implement ``op`` on a device, then ``PARTS`` where it is made of some."""
    smallest = Parameters(MODELS[0], (1,), (0,))
    found = []
    for info in registry.available():
        if info.kind is not Kind.KERNEL or info.state not in (State.READY, State.LOCAL):
            continue
        try:
            kernel = create_kernel(registry, info.name, device_name, smallest)
            if op in kernel.ops() and not kernel.supports(op, spec_of(device_name, smallest, device, CASES[op])):
                found.append(info.name)
        except TinyvllmError:
            continue  # a broken plugin matters once it is named: plugins check says why
    return [*found, *([PARTS] if OPS[op].is_fused else [])]


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
        found = kernel.supports(op, spec_of(device_name, smallest, None, CASES[op]))
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
    limits = limits_of(parameters)
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


def spec_of(device_name: str, parameters: Parameters, device: Device | None, case: type[Case]) -> OpSpec:
    """What an engine of these parameters asks of a case's op; without a device, of any card."""
    return OpSpec(
        device=device_name,
        model=parameters.model,
        dtype="float32" if device_name == "cpu" else "bfloat16",
        block_size=parameters.block_size,
        batch_invariant=parameters.batch_invariant,
        arch=device.properties.arch if isinstance(device, Gpu) else None,
        linear=case.linear_spec(parameters),
        heads=case.head_spec(parameters),
    )
