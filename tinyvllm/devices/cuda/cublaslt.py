"""cuBLASLt by ctypes: the dozen functions that a matrix product needs, with their errors raised.

By ctypes, because that is capture-safe (cupy refuses every cuBLAS call while a graph is recorded) and lets the caller
own the workspace and choose the algorithm. Source of the numbers: cuBLAS documentation, ``cublasLt.h``.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from dataclasses import dataclass

from tinyvllm.devices.cuda.driver import EXTRA
from tinyvllm.errors import DeviceError, KernelError

ALGORITHM_BYTES = 64
"""Size of ``cublasLtMatmulAlgo_t``, which may be stored and used again with the same version of the library."""

_DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
_COMPUTE_32F = 68
_DESC_TRANSA = 3
_CONFIG_SPLITK_NUM = 2
_CONFIG_REDUCTION_SCHEME = 3
_OP_T = 1
_PREF_MAX_WORKSPACE_BYTES = 1
_PREF_REDUCTION_SCHEME_MASK = 3
_PREF_MIN_ALIGNMENTS = (5, 6, 7, 8)  # of A, B, C and D
_REDUCE_NONE, _REDUCE_IN_COMPUTE_TYPE = 0, 2
_STATUS = {1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 11: "MAPPING_ERROR",
           13: "EXECUTION_FAILED", 14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED", 16: "LICENSE_ERROR"}  # fmt: skip


class _HeuristicResult(ctypes.Structure):
    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class GemmShape:
    """``out[M, N] = x[M, K] @ weight[N, K].T``; every address a multiple of ``alignment_bytes``.

    ``dtype`` is that of ``x`` and ``weight``, and of ``out`` unless ``is_out_float32``.
    """

    num_rows: int
    num_out: int
    num_in: int
    dtype: str
    alignment_bytes: int = 256
    is_out_float32: bool = False

    @property
    def out_dtype(self) -> str:
        """Of ``out``."""
        return "float32" if self.is_out_float32 else self.dtype

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.num_rows * self.num_out * self.num_in

    @property
    def nbytes(self) -> int:
        """Bytes of the three matrices, each counted once."""
        in_bytes, out_bytes = (4 if dtype == "float32" else 2 for dtype in (self.dtype, self.out_dtype))
        inputs = (self.num_rows + self.num_out) * self.num_in
        return inputs * in_bytes + self.num_out * self.num_rows * out_bytes


class CublasLt:
    """The library and one handle of it.

    Raises:
        DeviceError: the library is not installed, or would not start.
    """

    def __init__(self) -> None:
        self._library = load_library()
        self._library.cublasLtGetVersion.restype = ctypes.c_size_t
        self.version = int(self._library.cublasLtGetVersion())
        self._factors = (ctypes.c_float * 2)(0.0, 1.0)
        zero, one = (ctypes.c_void_p(ctypes.addressof(self._factors) + offset) for offset in (0, 4))
        self._alpha, self._betas = one, (zero, one)
        handle = ctypes.c_void_p()
        self._check("cublasLtCreate", self._library.cublasLtCreate(ctypes.byref(handle)))
        self.handle = handle
        # With the types declared, plain integers may be passed: a third of the time of making a c_void_p of each. What
        # stays the same is a c_void_p already, which is a little faster still.
        self._multiply = self._library.cublasLtMatmul
        self._multiply.argtypes = [*[ctypes.c_void_p] * 14, ctypes.c_size_t, ctypes.c_void_p]
        weakref.finalize(self, self._library.cublasLtDestroy, handle)

    def describe(self, shape: GemmShape) -> MatmulDescription:
        """The library's description of a product; row-major ``x @ weight.T`` is column-major ``weight.T @ x``.

        Raises:
            KernelError: the dtype is none that it multiplies.
        """
        if shape.dtype not in _DATA_TYPES:
            raise KernelError(f"gemm: {shape.dtype} is not among {', '.join(_DATA_TYPES)}")
        return MatmulDescription(self._library, shape)

    def candidates(
        self, description: MatmulDescription, max_workspace_bytes: int, *, most: int = 1, may_split: bool = True
    ) -> list[bytes]:
        """Algorithms for the product in the library's own form, the one expected to be fastest first.

        Args:
            description: the product.
            max_workspace_bytes: what an algorithm may need.
            most: how many at most.
            may_split: whether K may be cut in parts that are summed (in float32) afterwards.
        """
        shape = description.shape
        preference = ctypes.c_void_p()
        self._check("cublasLtMatmulPreferenceCreate",
                    self._library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))  # fmt: skip
        try:
            settings: list[tuple[int, ctypes.c_uint64 | ctypes.c_uint32]] = [
                (_PREF_MAX_WORKSPACE_BYTES, ctypes.c_uint64(max_workspace_bytes)),
                (_PREF_REDUCTION_SCHEME_MASK, ctypes.c_uint32(_REDUCE_IN_COMPUTE_TYPE if may_split else _REDUCE_NONE)),
                *((kind, ctypes.c_uint32(shape.alignment_bytes)) for kind in _PREF_MIN_ALIGNMENTS),
            ]
            for kind, value in settings:
                self._check("cublasLtMatmulPreferenceSetAttribute", self._library.cublasLtMatmulPreferenceSetAttribute(
                    preference, kind, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))))  # fmt: skip
            results, count = (_HeuristicResult * most)(), ctypes.c_int()
            status = self._library.cublasLtMatmulAlgoGetHeuristic(
                self.handle, description.operation, description.weight, description.x, description.out,
                description.out, preference, most, results, ctypes.byref(count),
            )  # fmt: skip
            if status != 0 or count.value == 0:
                raise KernelError(f"gemm: cuBLASLt has no algorithm for {shape} ({_STATUS.get(status, status)})")
        finally:
            self._library.cublasLtMatmulPreferenceDestroy(preference)
        return [bytes(result.algorithm) for result in results[: count.value] if result.state == 0]

    def split(self, description: MatmulDescription, algorithm: bytes, num_parts: int) -> bytes | None:
        """The algorithm with K cut in parts that are summed in float32, or None where it cannot be."""
        changed = (ctypes.c_char * ALGORITHM_BYTES).from_buffer_copy(algorithm)
        for attribute, number in ((_CONFIG_SPLITK_NUM, num_parts), (_CONFIG_REDUCTION_SCHEME, _REDUCE_IN_COMPUTE_TYPE)):
            value = ctypes.c_uint32(number)
            if self._library.cublasLtMatmulAlgoConfigSetAttribute(
                changed, attribute, ctypes.byref(value), ctypes.c_size_t(4)
            ):
                return None
        return bytes(changed) if self.accepts(description, bytes(changed)) else None

    def accepts(self, description: MatmulDescription, algorithm: bytes, max_workspace_bytes: int | None = None) -> bool:
        """Whether an algorithm, made for whatever product, can do this one."""
        result = _HeuristicResult()
        status = self._library.cublasLtMatmulAlgoCheck(
            self.handle, description.operation, description.weight, description.x, description.out,
            description.out, (ctypes.c_char * ALGORITHM_BYTES).from_buffer_copy(algorithm), ctypes.byref(result),
        )  # fmt: skip
        return status == 0 and (max_workspace_bytes is None or result.workspace_bytes <= max_workspace_bytes)

    def multiply(
        self, description: MatmulDescription, algorithm: ctypes.Array[ctypes.c_char], out: int, x: int, weight: int,
        accumulate: bool, workspace: int, workspace_bytes: int, stream: int,
    ) -> int:  # fmt: skip
        """Queues the product of the matrices at those addresses; the library's status, 0 for success.

        ``algorithm`` is one in the library's own form.
        """
        d = description
        status: int = self._multiply(
            self.handle, d.operation, self._alpha, weight, d.weight, x, d.x, self._betas[accumulate], out, d.out, out,
            d.out, algorithm, workspace, workspace_bytes, stream,
        )  # fmt: skip
        return status

    def _check(self, function: str, status: int) -> None:
        if status != 0:
            raise DeviceError(f"device cuda: {function} failed: {_STATUS.get(status, status)}")


class MatmulDescription:
    """The operation and the three layouts, in the library's form; destroyed with this object."""

    def __init__(self, library: ctypes.CDLL, shape: GemmShape) -> None:
        self.shape = shape
        kind = _DATA_TYPES[shape.dtype]
        self.operation = ctypes.c_void_p()
        status = library.cublasLtMatmulDescCreate(ctypes.byref(self.operation), _COMPUTE_32F, _DATA_TYPES["float32"])
        weakref.finalize(self, library.cublasLtMatmulDescDestroy, self.operation)
        transposed = ctypes.c_int32(_OP_T)
        status |= library.cublasLtMatmulDescSetAttribute(
            self.operation, _DESC_TRANSA, ctypes.byref(transposed), ctypes.c_size_t(4)
        )

        def layout(rows: int, columns: int, kind: int) -> ctypes.c_void_p:
            nonlocal status
            handle = ctypes.c_void_p()
            status |= library.cublasLtMatrixLayoutCreate(
                ctypes.byref(handle), kind, ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
            )
            weakref.finalize(self, library.cublasLtMatrixLayoutDestroy, handle)
            return handle

        # A row-major matrix is its transpose in column-major order, which is what cuBLAS reads.
        self.weight = layout(shape.num_in, shape.num_out, kind)
        self.x = layout(shape.num_in, shape.num_rows, kind)
        self.out = layout(shape.num_out, shape.num_rows, _DATA_TYPES[shape.out_dtype])
        if status != 0:
            raise DeviceError(f"device cuda: cuBLASLt cannot describe {shape}: {_STATUS.get(status, status)}")


def status_name(status: int) -> str:
    """The library's name of a status."""
    return f"CUBLAS_STATUS_{_STATUS.get(status, status)}"


def load_library() -> ctypes.CDLL:
    """The shared library.

    Raises:
        DeviceError: it is not found.
    """
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        path = pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path
        return ctypes.CDLL(path)
    except Exception as error:  # pathfinder has errors of its own for each way of not finding it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceError(
            f"device cuda: the cuBLASLt library is missing ({reason}); {EXTRA}, or pip install nvidia-cublas"
        ) from error


def alignment_of(*addresses: int) -> int:
    """The largest power of two, 256 at most, that divides all addresses."""
    low = 256
    for address in addresses:
        low |= address
    return low & -low
