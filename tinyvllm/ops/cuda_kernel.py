"""What authors of kernels need: a ``.cu`` file of one's own, as the implementation of an op in a few lines.

    def rms_norm(kernel, out, x, norm):
        kernel.launch("my_rms_norm", x.shape[0], 256, (out, x, norm.weight, x.shape[1], norm.eps))

    @hookimpl
    def register_kernels():
        return [cuda_kernel("mine", "rms_norm", Path(__file__).with_name("my_rms_norm.cu"), rms_norm)]

The source includes ``tinyvllm/prelude.cuh`` and no CUDA header; it runs on ``cuda`` and on the ``emulator``. Plugins of
other sockets compile and launch their sources by :class:`CudaSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tinyvllm._nearest import did_you_mean
from tinyvllm.device import Argument, Dim3, Function, Gpu
from tinyvllm.errors import PluginError
from tinyvllm.interfaces import BindContext, Kernel, OpSpec, Options, Plugin, PluginContext
from tinyvllm.ops.catalogue import OPS
from tinyvllm.workspace import Workspace

LaunchArgument: TypeAlias = Argument | int | float
"""An argument of a kernel; an int goes as ``int``, a float as ``float``, a NumPy scalar as its own type."""

_STATIC_BYTES = 48 * 1024


class CudaSource:
    """A ``.cu`` file, compiled for the device of an engine.

    Args:
        source: the file.
        workspace: of the engine; its device is a GPU, or the emulator of one.
        defines: preprocessor macros.
    Raises:
        KernelError: the compiler refuses the source.
    """

    def __init__(self, source: Path, workspace: Workspace, defines: Mapping[str, str | int] | None = None) -> None:
        self._gpu = workspace.gpu
        self._module = self._gpu.compile(source, defines)
        self._functions: dict[tuple[str, int], Function] = {}

    @property
    def device(self) -> Gpu:
        """Where it runs."""
        return self._gpu

    def launch(
        self,
        function: str,
        grid: int | Dim3,
        block: int | Dim3,
        arguments: Sequence[LaunchArgument],
        *,
        shared_bytes: int = 0,
        pdl: bool = False,
    ) -> None:
        """Queue a kernel of the source.

        Args:
            function: its name, ``extern "C" __global__``.
            grid: blocks, in x or in x, y, z.
            block: threads of a block, likewise.
            arguments: one for each parameter.
            shared_bytes: dynamic shared memory of a block.
            pdl: it may start before its predecessor has finished: only for a kernel that calls ``pdl_wait()``.
        Raises:
            KernelError: the device would refuse the launch, or an earlier kernel failed.
        """
        key = (function, shared_bytes)
        if key not in self._functions:
            most = max(shared_bytes, _STATIC_BYTES)
            self._functions[key] = self._module.function(function, max_dynamic_shared_bytes=most)
        self._gpu.launch(
            self._functions[key],
            (grid, 1, 1) if isinstance(grid, int) else grid,
            (block, 1, 1) if isinstance(block, int) else block,
            [_typed(argument) for argument in arguments],
            shared_bytes=shared_bytes,
            pdl=pdl,
        )


class BoundKernel(CudaSource):
    """A compiled source, bound to one op of one engine.

    Attributes:
        spec: what it serves: device, model, block size.
        workspace: the device, the limits of a step, and memory between kernels (``workspace.buffer``).
        options: of the plugin, validated.
    """

    def __init__(self, source: Path, context: BindContext, options: Any, defines: Mapping[str, str | int]) -> None:
        super().__init__(source, context.workspace, defines)
        self.spec, self.workspace, self.options = context.spec, context.workspace, options


def cuda_kernel(
    name: str,
    op: str,
    source: Path,
    run: Callable[..., None],
    *,
    defines: Callable[[OpSpec, Any], Mapping[str, str | int]] | None = None,
    supports: Callable[[OpSpec], list[str]] | None = None,
    options: type[Options] = Options,
    description: str = "",
) -> Plugin[Kernel]:
    """A plugin that implements ``op`` by a ``.cu`` file.

    Args:
        name: what the configuration chooses: ``kernels: {rms_norm: NAME}``.
        op: the op; ``python -m tinyvllm kernels list`` has their names.
        source: the file.
        run: called with a :class:`BoundKernel`, then the op's arguments as in
            :mod:`tinyvllm.ops`. It launches, and neither allocates nor waits.
        defines: preprocessor macros for a spec and the plugin's options.
        supports: reasons why it cannot serve a spec; a device that runs no CUDA sources is refused anyway.
        options: model of the plugin's options.
        description: one line.
    Raises:
        PluginError: there is no such op, naming the nearest. That ``source`` is no file is said when an engine, or
            a check, creates the kernel.
    """
    what = f"cuda_kernel({name!r}, {op!r}, ...)"
    if op not in OPS:
        raise PluginError(f"{what}: there is no such op{did_you_mean(op, OPS) or ';'} the ops are {', '.join(OPS)}")

    def create(context: PluginContext) -> Kernel:
        if not source.is_file():
            raise PluginError(f"{what}: there is no file {source}; expected the path of a .cu file")
        return _OneOp(op, source, run, context.options, defines, supports)

    return Plugin(name, create, options, description or f"{op} from {source.name}")


class _OneOp:
    """The Kernel of one op."""

    def __init__(
        self,
        op: str,
        source: Path,
        run: Callable[..., None],
        options: Any,
        defines: Callable[[OpSpec, Any], Mapping[str, str | int]] | None,
        supports: Callable[[OpSpec], list[str]] | None,
    ) -> None:
        self._op, self._source, self._run, self._options = op, source, run, options
        self._defines, self._supports = defines, supports

    def ops(self) -> Sequence[str]:
        """Its one op."""
        return [self._op]

    def supports(self, op: str, spec: OpSpec) -> list[str]:
        """Reasons why not."""
        if spec.device == "cpu":
            return [f"{self._source.name} is a CUDA source: it runs on cuda and the emulator, not on the CPU"]
        return [] if self._supports is None else self._supports(spec)

    def bind(self, op: str, context: BindContext) -> Callable[..., None]:
        """The op, compiled for this engine."""
        defines = {} if self._defines is None else self._defines(context.spec, self._options)
        return partial(self._run, BoundKernel(self._source, context, self._options, defines))


def _typed(argument: LaunchArgument) -> Argument:
    if isinstance(argument, int):
        return np.int32(argument)
    return np.float32(argument) if isinstance(argument, float) else argument
