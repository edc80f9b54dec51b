"""Which matrix products are timed at a start, on a device that only notes what it is asked."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from tests.engine.tiny import write_checkpoint
from tinyvllm import LLM
from tinyvllm.device import Buffer
from tinyvllm.start.tune import tune_products
from tinyvllm.workspace import StepLimits


class NotingDevice:
    """An emulator's memory, and products that need timing once."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.tuned: list[tuple[Any, ...]] = []
        self.x_of_zeros = False

    def is_gemm_tuned(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> bool:
        return (out.shape, out.dtype.name, x.shape, weight.shape, accumulate) in self.tuned

    def tune_gemm(self, out: Buffer, x: Buffer, weight: Buffer, *, accumulate: bool = False) -> None:
        values = self.memory.download(x).astype(np.float32)
        self.x_of_zeros |= not (np.isfinite(values).all() and values.any())
        self.tuned.append((out.shape, out.dtype.name, x.shape, weight.shape, accumulate))


def test_each_product_of_a_layer_is_timed_once_for_each_number_of_rows(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    llm = LLM(str(folder), device="emulator", dtype="bfloat16", skip_tokenizer_init=True, max_model_len=64)
    shape, weights = llm.shape, llm.engine._runner._decoder._weights  # type: ignore[attr-defined]
    assert llm.device is not None
    device: Any = NotingDevice(llm.device.memory)
    limits = StepLimits(100, 8, 64, 16, 40, False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "timed in" in tune_products(device, weights, limits)
    assert capsys.readouterr().err.count("once for this card") == 1
    assert not device.x_of_zeros, "products of zeros are faster than any real ones"
    query = shape.num_heads * shape.head_dim
    qkv = query + 2 * shape.num_kv_heads * shape.head_dim
    e, f, v = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    layers = [(qkv, e, False), (e, query, True), (2 * f, e, False), (e, f, True)]
    expected = {((rows, n), "bfloat16", (rows, k), (n, k), add) for rows in (16, 32, 64) for n, k, add in layers}
    expected |= {((rows, v), "float32", (rows, e), (v, e), False) for rows in (16, 32)}  # of 40 rows at most
    assert set(device.tuned) == expected
    assert len(device.tuned) == len(expected)
    assert tune_products(device, weights, limits) == "matrix products: as timed at an earlier start"
    assert len(device.tuned) == len(expected)
