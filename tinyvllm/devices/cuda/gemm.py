"""Matrix products by cuBLASLt: which algorithm for which shape, timed on request and remembered on disk."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvllm.device import Buffer
from tinyvllm.devices.compile_cache import key_of, note_unwritable
from tinyvllm.devices.cuda.cublaslt import (
    ALGORITHM_BYTES,
    CublasLt,
    GemmShape,
    MatmulDescription,
    alignment_of,
    status_name,
)
from tinyvllm.errors import KernelError, ShapeError

WORKSPACE_BYTES = 32 * 1024**2
"""Scratch memory of all products; one is enough, since they run one after the other."""

_MAX_PLANS = 4096
_NUM_CANDIDATES = 16
_NEARBY_ROWS = (16, 32, 64, 128, 256, 512)
"""The library proposes a few algorithms for each number of rows; tuning also tries those for these."""
_SPLITS = (2, 3, 4, 6, 8)
_INVARIANT_ROWS = 128
_ALGORITHM = re.compile(rf"[0-9a-f]{{{2 * ALGORITHM_BYTES}}}")


@dataclass(frozen=True, slots=True)
class _Plan:
    """A described product and the algorithm that does it."""

    description: MatmulDescription
    algorithm: ctypes.Array[ctypes.c_char]


@dataclass(frozen=True, slots=True)
class GemmTiming:
    """What tuning found for one shape."""

    shape: GemmShape
    accumulate: bool
    microseconds: float
    """Of the fastest algorithm."""
    untuned_microseconds: float
    """Of the one that the library proposes first."""
    num_tried: int


class AlgorithmStore:
    """Timed choices, one small JSON file per card and library version; losing it costs time, never correctness."""

    def __init__(self, cache_dir: Path, card: str, library_version: int) -> None:
        self.path = cache_dir / "cublaslt" / f"{key_of(card, str(library_version), str(WORKSPACE_BYTES))[:32]}.json"
        self._choices = self._read()

    def get(self, shape: GemmShape, accumulate: bool) -> bytes | None:
        """The algorithm chosen for that shape, if it has been timed."""
        text = self._choices.get(_name_of(shape, accumulate))
        return bytes.fromhex(text) if text is not None else None

    def near(self, shape: GemmShape, accumulate: bool) -> list[bytes]:
        """Algorithms chosen for nearly as many rows (up to twice as many, or half), the nearest first."""
        found: list[tuple[float, bytes]] = []
        name = _name_of(shape, accumulate)
        for other, text in self._choices.items():
            num_rows = _rows_in(other)
            if other == _with_rows(name, num_rows) and shape.num_rows <= 2 * num_rows <= 4 * shape.num_rows:
                found.append((abs(math.log(num_rows / shape.num_rows)), bytes.fromhex(text)))
        return [algorithm for _, algorithm in sorted(found)]

    def put(self, shape: GemmShape, accumulate: bool, algorithm: bytes) -> None:
        """Remembers a choice, beside what other processes have written meanwhile.

        Where the file cannot be written, the choice holds as long as the process, and a line on standard error says so.
        """
        self._choices = {**self._read(), **self._choices, _name_of(shape, accumulate): algorithm.hex()}
        temporary: Path | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".json", delete=False) as file:
                temporary = Path(file.name)
                json.dump(self._choices, file, indent=0, sort_keys=True)
            temporary.replace(self.path)
        except OSError as error:
            note_unwritable(f"the cache {self.path.parent}", error.strerror or str(error))
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def _read(self) -> dict[str, str]:
        try:
            choices = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(choices, dict):
            return {}
        return {name: text for name, text in choices.items() if isinstance(text, str) and _ALGORITHM.fullmatch(text)}


class Gemm:
    """``out = x @ weight.T`` on one card, summed in float32 and rounded to the dtype at the end.

    With ``accumulate`` some of the library's algorithms round the product before they add it to ``out``, as two
    operations would.

    Args:
        library: cuBLASLt.
        store: choices made by ``tune``; a shape that was never tuned gets what the library proposes first.
        workspace: ``WORKSPACE_BYTES`` of device memory.
        stream: the address of the driver's stream.
        batch_invariant: one algorithm per weight matrix, whatever the number of rows, that never splits K: the bits
            of a row do not depend on its company. Tuned choices are then not used.
    """

    def __init__(
        self, library: CublasLt, store: AlgorithmStore, workspace: Buffer, stream: int, *, batch_invariant: bool
    ) -> None:
        self._library = library
        self._store = store
        self._workspace = workspace
        self._stream = stream
        self._batch_invariant = batch_invariant
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    def run(self, out: Buffer, x: Buffer, weight: Buffer, accumulate: bool) -> None:
        """Queues the product; see ``Device.gemm``."""
        if out.nbytes == 0:
            shape_of(out, x, weight)
            return
        alignment = alignment_of(out.pointer, x.pointer, weight.pointer)
        key = (out.shape, x.shape, weight.shape, out.dtype, x.dtype, weight.dtype, alignment, accumulate)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            description = self._library.describe(shape_of(out, x, weight))
            plan = self._plans[key] = _Plan(description, _as_array(self._choose(description, accumulate)))
        self._run(plan, out, x, weight, accumulate)

    def tune(
        self, out: Buffer, x: Buffer, weights: list[Buffer], accumulate: bool, time_us: Callable[[Any], float]
    ) -> GemmTiming:
        """Times the library's proposals on these buffers and remembers the fastest; ``out`` is overwritten.

        Args:
            out: as for ``run``; so is ``x``.
            weights: copies of one matrix, together larger than the card's cache, used in turn.
            accumulate: as for ``run``.
            time_us: microseconds that the work which a function queues takes.
        """
        shape = shape_of(out, x, weights[0])
        description = self._library.describe(shape)
        timed: list[tuple[float, bytes]] = []
        for candidate in self._proposals(description):
            plan = _Plan(description, _as_array(candidate))
            try:
                self._run(plan, out, x, weights[0], accumulate)
            except KernelError:
                continue  # proposed, but refused for these addresses

            def work(plan: _Plan = plan) -> None:
                for weight in weights:
                    self._run(plan, out, x, weight, accumulate)

            timed.append((time_us(work) / len(weights), candidate))
        if not timed:
            raise KernelError(f"gemm: cuBLASLt refuses all of its own algorithms for {shape}")
        first = timed[0][0]
        best_us, best = min(timed, key=lambda pair: pair[0])
        self._store.put(shape, accumulate, best)
        self._plans.clear()
        return GemmTiming(shape, accumulate, best_us, first, len(timed))

    def is_tuned(self, out: Buffer, x: Buffer, weight: Buffer, accumulate: bool) -> bool:
        """Whether ``tune`` has found an algorithm for exactly such a product."""
        return self._store.get(shape_of(out, x, weight), accumulate) is not None

    def _proposals(self, description: MatmulDescription) -> list[bytes]:
        """Algorithms worth timing, each once; the one that is used without tuning comes first."""
        shape, library = description.shape, self._library
        found = library.candidates(description, WORKSPACE_BYTES, most=_NUM_CANDIDATES)
        for num_rows in _NEARBY_ROWS:
            nearby = library.describe(dataclasses.replace(shape, num_rows=num_rows))
            found += library.candidates(nearby, WORKSPACE_BYTES, most=_NUM_CANDIDATES)
        unsplit = list(dict.fromkeys(found))
        split = [library.split(description, algorithm, parts) for algorithm in unsplit for parts in _SPLITS]
        return list(dict.fromkeys([*unsplit, *(algorithm for algorithm in split if algorithm is not None)]))

    def _choose(self, description: MatmulDescription, accumulate: bool) -> bytes:
        shape = description.shape
        if self._batch_invariant:
            fixed = dataclasses.replace(shape, num_rows=_INVARIANT_ROWS, alignment_bytes=min(16, shape.alignment_bytes))
            found = self._library.candidates(self._library.describe(fixed), WORKSPACE_BYTES, may_split=False)
        else:
            chosen = self._store.get(shape, accumulate)
            if chosen is not None:
                return chosen
            for nearby in self._store.near(shape, accumulate):
                if self._library.accepts(description, nearby, WORKSPACE_BYTES):
                    return nearby
            found = self._library.candidates(description, WORKSPACE_BYTES)
        return found[0]

    def _run(self, plan: _Plan, out: Buffer, x: Buffer, weight: Buffer, accumulate: bool) -> None:
        status = self._library.multiply(
            plan.description, plan.algorithm, out.pointer, x.pointer, weight.pointer, accumulate,
            self._workspace.pointer, WORKSPACE_BYTES, self._stream,
        )  # fmt: skip
        if status != 0:
            raise KernelError(f"gemm: cuBLASLt refuses {plan.description.shape}: {status_name(status)}")


def shape_of(out: Buffer, x: Buffer, weight: Buffer) -> GemmShape:
    """The shape of a product.

    Raises:
        ShapeError: the matrices do not fit together.
    """
    fits = len(x.shape) == 2 and len(weight.shape) == 2 and x.shape[1] == weight.shape[1]
    fits = fits and x.dtype == weight.dtype and out.dtype.name in (x.dtype.name, "float32")
    if not fits or out.shape != (x.shape[0], weight.shape[0]):
        raise ShapeError(
            f"gemm: out {out.dtype} {out.shape}, x {x.dtype} {x.shape}, weight {weight.dtype} {weight.shape} do not "
            "fit; expected [T, N], [T, K], [N, K] of one dtype (out may be float32)"
        )
    alignment = alignment_of(out.pointer, x.pointer, weight.pointer)
    return GemmShape(
        x.shape[0], weight.shape[0], x.shape[1], x.dtype.name, alignment, is_out_float32=out.dtype != x.dtype
    )


def _rows_in(name: str) -> int:
    """The number of rows in a name made by ``_name_of``."""
    match = re.match(r"\w+ (\d+)x", name)
    return int(match[1]) if match else 0


def _with_rows(name: str, num_rows: int) -> str:
    return re.sub(r" \d+x", f" {num_rows}x", name, count=1)


def _as_array(algorithm: bytes) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * ALGORITHM_BYTES).from_buffer_copy(algorithm)


def _name_of(shape: GemmShape, accumulate: bool) -> str:
    return (f"{shape.dtype} {shape.num_rows}x{shape.num_out}x{shape.num_in} align {shape.alignment_bytes}"
            f"{' to float32' if shape.is_out_float32 else ''}{' accumulate' if accumulate else ''}")  # fmt: skip
