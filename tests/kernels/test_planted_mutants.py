"""One fault of each kind, planted, and the test that must catch it; more in ``test_barriers``, ``test_*_mutants``.

| fault | in | caught by |
|---|---|---|
| a dropped barrier | sums of a projection | the projection against its definition |
| an off-by-one block | attention's block table | attention against its definition |
| an off-by-one block | where keys are appended | the append against its definition |
| adjacent pairs turned together | RoPE | the append against its definition |
| a missing scale | attention's scores | attention against its definition |
| a read before the wait on the predecessor | silu_mul, rms_norm | kernels that follow each other |
| no wait at all | silu_mul | kernels that follow each other |
| a sum that leaves out the end of a row | rms_norm | the norm against its definition |
| an unguarded load | rms_norm | the bounds check |
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tinyvllm.device import Gpu
from tinyvllm.devices.emulator import Sanitizer

from . import sanitized, test_attention_decode, test_projections, test_rope_append, test_simple_kernels
from .attention_cases import LAYOUTS
from .mutants import Scenario, copy_kernels, is_broken, plant, sanitize
from .test_projection_mutants import ADJACENT_PAIRS


def called(test: Any, *arguments: Any) -> Scenario:
    """A hypothesis test as a scenario, with fixed arguments."""
    return lambda device: test.hypothesis.inner_test(device, *arguments)


def on_two_layers(device: Gpu) -> None:
    test = test_projections.test_a_linear_layer_is_its_definition.hypothesis.inner_test  # type: ignore[attr-defined]
    for layer in test_projections.LAYERS[4:6]:  # several tiles a block, rows shared by warps
        test(device, layer, 1, True, True, 5)


decode = called(test_attention_decode.test_decode_is_its_definition, LAYOUTS[0], [600, 3, 64, 300], None, 1)
append = called(test_rope_append.test_heads_are_normalised_rotated_and_appended, 64, 2, 3, 7, 1, 1, False, 0)
norm = called(test_simple_kernels.test_rms_norm_is_its_definition, 4104, 3, 0)  # no multiple of a block's threads
chain: Scenario = test_simple_kernels.test_simple_kernels_wait_for_each_other

# The statement that loads what the predecessor writes, and the wait before it: in the other order.
LOADS_FIRST = re.compile(r"(pdl_wait\(\);[^\n]*\n)((?:.*\n)*?[^\n]*load16\((?:gate_row|x \+)[^\n]*\n)")

FAULTS: dict[str, tuple[str, str | re.Pattern[str], str, Scenario]] = {
    "a dropped barrier": ("gemv_core.cuh", re.compile(r"__syncthreads\(\);"), ";", on_two_layers),
    "an off-by-one block to read": (
        "attention_tile.cuh", "position / block_size + lane;", "position / block_size + lane + 1;", decode,
    ),
    "an off-by-one block to write": ("rotate.cuh", "slot / block_size,", "(slot + 1) / block_size,", append),
    "adjacent pairs": ("rope_append.cu", *ADJACENT_PAIRS, append),
    "a missing scale": ("attention_tile.cuh", re.compile(r"fmaf\((\w+), scale, -(\w+)\)"), r"\1 - \2", decode),
    "a read before the wait": ("silu_mul.cu", LOADS_FIRST, r"\2\1", chain),
    "no wait": ("silu_mul.cu", re.compile(r"pdl_wait\(\);"), "", chain),
    "a row without its end": ("rms_norm.cu", "ceil_div(num_vectors, THREADS)", "num_vectors / THREADS", norm),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_caught(tmp_path: Path, mutant_cache: Path, fault: str) -> None:
    name, old, new, scenario = FAULTS[fault]
    plant(tmp_path, name, old, new)
    assert is_broken(scenario, tmp_path, mutant_cache)


@pytest.mark.parametrize("scenario", [on_two_layers, decode, append, norm, chain], ids=lambda _: "")
def test_without_a_fault_nothing_is_caught(tmp_path: Path, mutant_cache: Path, scenario: Scenario) -> None:
    assert not is_broken(scenario, copy_kernels(tmp_path), mutant_cache)


def test_an_unguarded_load_is_out_of_bounds(tmp_path: Path, checked_mutant_cache: Path) -> None:
    path = plant(tmp_path, "rms_norm.cu", re.compile(r"if \(vector < num_vectors\) (values)"), r"\1")
    run = partial(sanitize, sanitized.__name__, "simple", Sanitizer.BOUNDS, tmp_path, checked_mutant_cache)
    assert any(str(path) in str(finding) and "overflow" in finding.kind for finding in run().findings)
