"""What a device offers to everything above it: memory, and where kernels are launched, compile, launch, GEMM, graph.

The CPU, the CUDA device and the emulator implement these protocols; the engine, models, ops and launchers are written
against them alone.
Work is asynchronous and in order, as in one CUDA stream: a call returns when its work is queued, and a failure may be
raised by a later call; ``synchronize`` raises what is left. Knows nothing about models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tinyvllm.errors import KernelError

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
INT32 = np.dtype(np.int32)

Array: TypeAlias = npt.NDArray[Any]
Dim3: TypeAlias = tuple[int, int, int]
Shape: TypeAlias = tuple[int, ...]


class Tensor(Protocol):
    """An array in the memory of a device: ``numpy.ndarray`` on the CPU, :class:`Buffer` elsewhere.

    Contiguous and row-major where an op writes to it. What models and compositions of ops do with one is this alone.
    """

    @property
    def shape(self) -> Shape:
        """Sizes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Some of the rows, one after the other; shares the memory."""
        ...

    def reshape(self, shape: Shape, /) -> Tensor:
        """The same numbers as an array of another shape; shares the memory."""
        ...


@dataclass(frozen=True, slots=True)
class Buffer:
    """A contiguous, row-major array in device memory; a view shares its owner's memory.

    ``pointer`` is the address of the first byte on the device; ``owner`` keeps the memory alive.
    """

    pointer: int
    shape: Shape
    dtype: np.dtype[Any]
    owner: object = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, shape: Shape, dtype: npt.DTypeLike | None = None, offset_bytes: int = 0) -> Buffer:
        """The part of this buffer from ``offset_bytes`` on, seen with another shape and dtype.

        Raises:
            KernelError: the view would end beyond the buffer.
        """
        kind = self.dtype if dtype is None else np.dtype(dtype)
        part = Buffer(self.pointer + offset_bytes, shape, kind, self.owner)
        if offset_bytes < 0 or offset_bytes + part.nbytes > self.nbytes:
            raise KernelError(
                f"view {shape} of {kind} from byte {offset_bytes} ends beyond a buffer of {self.nbytes} bytes"
            )
        return part

    def __getitem__(self, rows: slice, /) -> Buffer:
        """Some of the rows, one after the other.

        Raises:
            KernelError: the rows have gaps between them, or end beyond the buffer.
        """
        first, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise KernelError(f"rows {rows} of a buffer do not lie one after the other")
        shape = (max(0, stop - first), *self.shape[1:])
        row_bytes = self.nbytes // self.shape[0] if self.shape[0] else 0
        return Buffer(self.pointer + first * row_bytes, shape, self.dtype, self.owner)

    def reshape(self, shape: Shape, /) -> Buffer:
        """The same numbers as an array of another shape.

        Raises:
            KernelError: it has another number of elements.
        """
        if math.prod(shape) != math.prod(self.shape):
            raise KernelError(f"a buffer of shape {self.shape} cannot be seen as one of shape {shape}")
        return Buffer(self.pointer, shape, self.dtype, self.owner)


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A matrix as the copy engine of a Hopper card sees it: the prelude's ``TensorMap``; see ``Device.tensor_map``."""

    words: bytes
    matrix: Buffer


Argument: TypeAlias = Buffer | TensorMap | np.generic | None
"""A kernel argument: a buffer (its pointer), a map (by value), a NumPy scalar (its dtype is the parameter's type), or
None (null)."""


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What a launcher may need to know of the card; ``arch`` is 90 for sm_90."""

    name: str
    arch: int
    num_sms: int
    max_threads_per_block: int
    max_threads_per_sm: int
    max_blocks_per_sm: int
    max_shared_bytes: int
    """Most shared memory of one block, static and dynamic together, when the function asked for it."""
    shared_bytes_per_sm: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class HostBuffer:
    """Memory of the host that kernels can write to: ``buffer`` as they see it, ``array`` as the host does."""

    buffer: Buffer
    array: Array


def check_corner(buffer: Buffer, array: Array) -> None:
    """Return if ``array`` may be copied into a corner of ``buffer``.

    Raises:
        KernelError: it is larger, or of another dtype.
    """
    fits = array.ndim == len(buffer.shape) == 2 and array.dtype == buffer.dtype
    if not fits or any(size > most for size, most in zip(array.shape, buffer.shape, strict=True)):
        raise KernelError(
            f"upload: the array is {array.dtype} {array.shape}, a corner of {buffer.dtype} {buffer.shape} is wanted"
        )


class Memory(Protocol):
    """Memory of a device, in the order in which work is queued there."""

    def alloc(self, shape: Shape, dtype: npt.DTypeLike) -> Tensor:
        """A new tensor, every byte 0xFF where the device can afford it (floats are NaN)."""
        ...

    def upload(self, tensor: Any, array: Array) -> None:
        """Copies ``array`` (same shape and dtype) into a tensor; the array may be changed as soon as this returns."""
        ...

    def download(self, tensor: Any) -> Array:
        """A copy of a tensor's contents after all work queued so far. Waits."""
        ...

    def fill(self, tensor: Any, byte: int) -> None:
        """Sets every byte of a tensor: 0 to clear, 0xFF to poison."""
        ...


class GpuMemory(Memory, Protocol):
    """Memory that kernels see."""

    def alloc(self, shape: Shape, dtype: npt.DTypeLike) -> Buffer:
        """A new buffer, 256-byte aligned, every byte 0xFF where the device can afford it (floats are NaN)."""
        ...

    def upload_corner(self, buffer: Buffer, array: Array) -> None:
        """Copies ``array`` ``[b, w]`` into the first ``b`` rows and ``w`` columns of ``buffer``; as ``upload``."""
        ...

    def start_download(self, buffer: Buffer) -> Download:
        """Queues a copy to the host and returns at once, so that it can be awaited one step later."""
        ...

    def alloc_host(self, shape: Shape, dtype: npt.DTypeLike) -> HostBuffer:
        """New memory of the host that kernels can write to, zeros. What a kernel wrote is there once it has ended."""
        ...

    def mark(self) -> Mark:
        """A point in the stream, not set yet."""
        ...

    def free_bytes(self) -> int:
        """What can still be allocated."""
        ...


class Mark(Protocol):
    """A point in the stream, to wait for. It can be moved."""

    def set(self) -> None:
        """Moves to the end of what is queued."""
        ...

    def wait(self) -> None:
        """Returns when the stream has passed it; raises what failed before it."""
        ...


class Download(Protocol):
    """A copy to the host that may still be under way."""

    def wait(self) -> Array:
        """The contents the buffer had at this point of the stream."""
        ...


class Function(Protocol):
    """One kernel of a module."""

    @property
    def name(self) -> str:
        """The name in the source."""
        ...


class Module(Protocol):
    """A compiled source."""

    def function(self, name: str, *, max_dynamic_shared_bytes: int = 48 * 1024) -> Function:
        """The kernel ``name``, allowed up to that much dynamic shared memory (more than 48 KiB must be asked for).

        Raises:
            KernelError: the source defines no such kernel, or the device has less shared memory.
        """
        ...


class Graph(Protocol):
    """A sequence of launches recorded once, with their arguments and dependent-launch edges."""

    def replay(self) -> None:
        """Queues the whole sequence again."""
        ...


class Device(Protocol):
    """Where a model is: its name, its memory, and how what was queued is awaited."""

    @property
    def name(self) -> str:
        """``"cpu"``, ``"emulator"`` or ``"cuda"``."""
        ...

    @property
    def activation_dtype(self) -> np.dtype[Any]:
        """Of hidden states, weights and the KV cache: float32 on the CPU, bfloat16 elsewhere."""
        ...

    @property
    def memory(self) -> Memory:
        """Allocation and copies."""
        ...

    def synchronize(self) -> None:
        """Waits for all queued work; raises what failed in it."""
        ...


@runtime_checkable
class Gpu(Device, Protocol):
    """A device that compiles and launches CUDA kernels: a GPU, or the emulator of one."""

    @property
    def properties(self) -> DeviceProperties:
        """What the card is."""
        ...

    @property
    def memory(self) -> GpuMemory:
        """Allocation and copies."""
        ...

    def compile(self, source: Path, defines: Mapping[str, str | int] | None = None) -> Module:
        """The module of a ``.cu`` file, with ``defines`` as preprocessor macros; from the cache where it can be.

        Raises:
            KernelError: the compiler refused it; its messages, with file and line.
        """
        ...

    def launch(
        self,
        function: Function,
        grid: Dim3,
        block: Dim3,
        arguments: Sequence[Argument],
        *,
        shared_bytes: int = 0,
        pdl: bool = False,
        cooperative: bool = False,
        cluster: Dim3 = (1, 1, 1),
    ) -> None:
        """Queues a kernel.

        Args:
            function: a function of this device's modules.
            grid: blocks in x, y, z.
            block: threads in x, y, z.
            arguments: one for each parameter, in order.
            shared_bytes: dynamic shared memory per block.
            pdl: the kernel may start before its predecessor in the stream has finished, up to its ``pdl_wait``;
                an ordinary launch before sm_90.
            cooperative: all blocks are resident together, as ``grid_barrier`` and ``counter_wait`` need.
            cluster: blocks per cluster; sm_90 and later.

        Raises:
            KernelError: the card would refuse the launch, or an earlier kernel failed.
        """
        ...

    def tensor_map(self, matrix: Buffer, box_rows: int, *, paired: bool = False) -> TensorMap:
        """What ``tensor_copy`` of the prelude needs to bring boxes of ``matrix`` to shared memory; sm_90 alone.

        Args:
            matrix: ``[N, K]``, bfloat16, at an address and with rows of a multiple of 16 bytes.
            box_rows: rows of a box, up to 256; a box has 64 columns. What lies beyond the matrix comes as zeros.
            paired: rows come in eights, in turn from the first and from the second half of the matrix.
        """
        ...

    def gemm(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> None:
        """Queues ``out = x @ weight.T`` (``+ out`` with ``accumulate``), summed in float32.

        Args:
            out: ``[T, N]``, of the dtype of ``x`` or float32.
            x: ``[T, K]``, bfloat16 or float32.
            weight: ``[N, K]``, of the dtype of ``x``.
            accumulate: add to what is in ``out``.
        """
        ...

    def capture(self) -> AbstractContextManager[Graph]:
        """Within the ``with`` block launches, fills and GEMMs are recorded instead of run."""
        ...
