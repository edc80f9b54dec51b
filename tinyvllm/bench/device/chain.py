"""The decode step of a Llama as a chain of kernels, with random weights and no attention.

Timed by ``decode_chain``; a test holds its dependent launches against separate ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tinyvllm.bench.device.launchers import Embedding, GateUpSilu, LinearResidual, LmHeadArgmax, QkvRopeAppend, Tiling
from tinyvllm.device import Array, Buffer, Gpu, Shape
from tinyvllm.testing.case import Bench
from tinyvllm.testing.numbers import BF16, bf16

EPS = 1e-5
BLOCK_SIZE = 16
NUM_BLOCKS = 8
NUM_POSITIONS = 256
KERNELS = ("qkv", "o", "gate_up", "down", "lm_head")

_POOL_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class ChainShape:
    """The sizes of the model: layers, E, H, K, D, F, V."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def weights(self) -> dict[str, Shape]:
        """Shape ``[out, in]`` of the weight that each kernel streams."""
        e, f, q = self.hidden_size, self.intermediate_size, self.num_heads * self.head_dim
        return {
            "qkv": (q + 2 * self.num_kv_heads * self.head_dim, e),
            "o": (e, q),
            "gate_up": (2 * f, e),
            "down": (e, f),
            "lm_head": (self.vocab_size, e),
        }

    def weight_bytes(self, kernel: str) -> int:
        """Bytes that one launch of ``kernel`` streams."""
        num_outputs, size_k = self.weights[kernel]
        return 2 * num_outputs * size_k


LLAMA_1B = ChainShape(16, 2048, 32, 8, 64, 8192, 128256)


class ChainWeights:
    """Random weights (sigma 0.02) on the device: those of each layer, and the embedding table, which is the head too.

    Large ones are cut from one pool of random numbers at odd places; no two layers are equal.
    """

    def __init__(self, device: Gpu, shape: ChainShape) -> None:
        rng, put = np.random.default_rng(0), Bench(device).put
        pool = bf16(rng.standard_normal(_POOL_ELEMENTS if shape.hidden_size >= 1024 else 1 << 16) * 0.02)
        self.shape = shape

        def random(size: Shape) -> Buffer:
            start = int(rng.integers(0, pool.size))
            values: Array = np.resize(np.roll(pool, -start), size)
            buffer: Buffer = put(values)
            return buffer

        self.layers = [
            {name: random(size) for name, size in shape.weights.items() if name != "lm_head"}
            for _ in range(shape.num_layers)
        ]
        self.table = random(shape.weights["lm_head"])
        self.norm = put(bf16(rng.uniform(0.5, 1.5, shape.hidden_size)))


class DecodeChain:
    """One decode step of ``rows`` sequences.

    Args:
        device: where it runs.
        weights: of every layer.
        rows: sequences.
        tilings: by name of ``KERNELS``, for those that shall not have their default.
        pdl: every launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        weights: ChainWeights,
        *,
        rows: int = 1,
        tilings: Mapping[str, Tiling] | None = None,
        pdl: bool = True,
    ) -> None:
        shape, cut = weights.shape, tilings or {}
        self._weights = weights
        self._allocate(device, shape, rows)
        e, f = shape.hidden_size, shape.intermediate_size
        self._embedding = Embedding(device, hidden_size=e, pdl=pdl)
        self._qkv = QkvRopeAppend(
            device, hidden_size=e, num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim, eps=EPS, max_rows=rows, tiling=cut.get("qkv"), pdl=pdl,
        )  # fmt: skip
        self._o = LinearResidual(
            device, in_features=shape.num_heads * shape.head_dim, out_features=e, max_rows=rows, tiling=cut.get("o"),
            pdl=pdl,
        )  # fmt: skip
        self._gate_up = GateUpSilu(
            device, hidden_size=e, intermediate_size=f, eps=EPS, max_rows=rows, tiling=cut.get("gate_up"), pdl=pdl
        )
        self._down = LinearResidual(
            device, in_features=f, out_features=e, max_rows=rows, tiling=cut.get("down"), pdl=pdl
        )
        self._lm_head = LmHeadArgmax(
            device, hidden_size=e, vocab_size=shape.vocab_size, eps=EPS, max_rows=rows, tiling=cut.get("lm_head"),
            pdl=pdl,
        )  # fmt: skip

    def _allocate(self, device: Gpu, shape: ChainShape, rows: int) -> None:
        memory, put = device.memory, Bench(device).put
        cache = (NUM_BLOCKS, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
        self.caches = [(memory.alloc(cache, BF16), memory.alloc(cache, BF16)) for _ in range(shape.num_layers)]
        self.residual = memory.alloc((rows, shape.hidden_size), BF16)
        self.query = memory.alloc((rows, shape.num_heads, shape.head_dim), BF16)
        self._activation = memory.alloc((rows, shape.intermediate_size), BF16)
        self.token_ids = put(np.arange(rows, dtype=np.int32))
        self._positions = put(np.arange(rows, dtype=np.int32) + 7)
        self._slots = put(np.arange(rows, dtype=np.int32) + 3)
        half = shape.head_dim // 2
        angles = np.arange(NUM_POSITIONS)[:, None] * 10000.0 ** (-np.arange(half) / half)
        self._cos = put(np.cos(angles).astype(np.float32))
        self._sin = put(np.sin(angles).astype(np.float32))

    def launches(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Every launch of a step in order, by name."""
        yield "embedding", lambda: self._embedding(self.residual, self.token_ids, self._weights.table)
        for layer in range(self._weights.shape.num_layers):
            yield "qkv", partial(self._run_qkv, layer)
            yield "o", partial(self._run_o, layer)
            yield "gate_up", partial(self._run_gate_up, layer)
            yield "down", partial(self._run_down, layer)
        yield "lm_head", lambda: self._lm_head(self.token_ids, self.residual, self._weights.norm, self._weights.table)

    def _run_qkv(self, layer: int) -> None:
        w = self._weights
        key_cache, value_cache = self.caches[layer]
        self._qkv(
            self.query, key_cache, value_cache, self.residual, w.norm, w.layers[layer]["qkv"], None, self._cos,
            self._sin, self._positions, self._slots,
        )  # fmt: skip

    def _run_o(self, layer: int) -> None:
        rows, h, d = self.query.shape
        self._o(self.residual, self.query.view((rows, h * d)), self._weights.layers[layer]["o"])

    def _run_gate_up(self, layer: int) -> None:
        w = self._weights
        self._gate_up(self._activation, self.residual, w.norm, w.layers[layer]["gate_up"])

    def _run_down(self, layer: int) -> None:
        self._down(self.residual, self._activation, self._weights.layers[layer]["down"])
