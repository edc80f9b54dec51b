"""How little a new op touches: its definition, its signature, its kernel with launcher, and its cases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

DEFINITION = '''"""The opposite."""

from __future__ import annotations

from tinyvllm.shapes import Float32


def negate(x: Float32) -> Float32:
    """``-x``."""
    return -x
'''
SIGNATURE = '''

@simple("the opposite")
def negate(out: Array, x: Array) -> None:
    """``out = -x``, both ``[T, E]``."""
    from tinyvllm.reference.negate import negate as _negate

    out[...] = _negate(x)
'''
KERNEL = """#include "tinyvllm/prelude.cuh"

extern "C" __global__ void negate(bf16* out, const bf16* x, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) out[i] = from_float<bf16>(SIGN to_float(x[i]));
}
"""
LAUNCHER = '''"""Launches ``negate.cu``."""

from __future__ import annotations

import math

import numpy as np

from tinyvllm.ops.buffers import beside, ceil_div
from tinyvllm.plugin import BindContext, Buffer


def bind_negate(context: BindContext):
    device = context.gpu
    function = device.compile(beside(__file__, "negate.cu"), {}).function("negate")

    def negate(out: Buffer, x: Buffer) -> None:
        size = math.prod(x.shape)
        device.launch(function, (ceil_div(size, 128), 1, 1), (128, 1, 1), (out, x, np.int32(size)))

    return negate


BINDERS = {"negate": bind_negate}
'''
CASES = '''"""Cases of ``negate``."""

from __future__ import annotations

from tinyvllm.testing.case import Case
from tinyvllm.testing.numbers import rows_of_many_scales


class NegateCase(Case):
    op = "negate"
    is_exact = True

    def __init__(self, parameters):
        super().__init__(parameters)
        self.x = rows_of_many_scales(self.rng, (parameters.num_rows, self.model.hidden_size))

    def run(self, op, bench):
        out = bench.poisoned(self.x.shape)
        op(out, bench.put(self.x))
        return {"out": out}

    def error(self, expected, roundoff):
        return {"out": 0.0}
'''


def check(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tinyvllm", "kernels", "check", "negate", "--cases", "4"]
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'plugins'}"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=240)


def test_a_new_op_on_every_device_is_four_files_and_its_source(tmp_path: Path) -> None:
    for package in ("tinyvllm", "plugins"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    rows = tmp_path / "plugins" / "tinyvllm_kernels" / "rows"
    (tmp_path / "tinyvllm" / "reference" / "negate.py").write_text(DEFINITION)
    with (tmp_path / "tinyvllm" / "ops" / "simple.py").open("a") as ops:
        ops.write(SIGNATURE)
    (rows / "negate.py").write_text(LAUNCHER)
    (tmp_path / "tinyvllm" / "testing" / "negate_cases.py").write_text(CASES)

    (rows / "negate.cu").write_text(KERNEL.replace("SIGN", "-"))
    right = check(tmp_path)
    assert right.returncode == 0, right.stdout + right.stderr
    verdicts = [line.split() for line in right.stdout.splitlines() if line.startswith("negate")]
    assert [(line[1], line[2], line[-1]) for line in verdicts] == [
        ("reference", "cpu", "right"), ("nvrtc", "emulator", "right"),
    ]  # fmt: skip

    (rows / "negate.cu").write_text(KERNEL.replace("SIGN", "+"))
    wrong = check(tmp_path)
    assert wrong.returncode != 0
    assert "negate by nvrtc on emulator: WRONG" in wrong.stdout
