"""Dependent launches in a graph against the same kernels one at a time: nothing is read before the wait."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvllm.bench.device.chain import ChainShape, ChainWeights, DecodeChain
from tinyvllm.device import Array, Gpu

from .support import get

SHAPE = ChainShape(2, 192, 4, 2, 64, 64, 300)
NUM_STEPS = 3


def run_steps(device: Gpu, rows: int, *, is_graph: bool) -> list[Array]:
    """Tokens, residual stream and caches after some steps that feed their tokens to the next."""
    chain = DecodeChain(device, ChainWeights(device, SHAPE), rows=rows, pdl=is_graph)
    for cache in (buffer for pair in chain.caches for buffer in pair):
        device.memory.fill(cache, 0)
    device.synchronize()
    if is_graph:
        with device.capture() as graph:
            for _, launch in chain.launches():
                launch()
        for _ in range(NUM_STEPS):
            graph.replay()
    else:
        for _ in range(NUM_STEPS):
            for _, launch in chain.launches():
                launch()
                device.synchronize()
    caches = [get(device, buffer) for pair in chain.caches for buffer in pair]
    return [get(device, chain.token_ids), *(x.view(np.uint16) for x in (get(device, chain.residual), *caches))]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_graph_of_dependent_launches_gives_the_bits_of_separate_ones(device: Gpu, rows: int) -> None:
    in_graph, separate = (run_steps(device, rows, is_graph=is_graph) for is_graph in (True, False))
    for got, expected in zip(in_graph, separate, strict=True):
        assert (got == expected).all()
    assert (in_graph[0] >= 0).all(), "the chain has made NaN: it proves nothing"
