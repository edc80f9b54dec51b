"""What the kit says of right kernels, and of wrong ones: a bound that nothing breaks would prove nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.testing.own_kernel import write_own_attention, write_own_kernel
from tinyvllm.devices.emulator import Sanitizer
from tinyvllm.errors import ConfigError, DeviceError, PluginError
from tinyvllm.ops.catalogue import OPS
from tinyvllm.testing import check_op
from tinyvllm.testing.check import find_subjects
from tinyvllm.testing.parameters import MODELS, Parameters
from tinyvllm.testing.sanitized import check_sanitized
from tinyvllm.testing.subject import CASES


def test_every_op_has_a_case() -> None:
    assert set(CASES) == set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_the_cpus_ops_are_their_definitions(op: str) -> None:
    for outcome in check_op(op, device="cpu", num_cases=20):
        assert outcome.is_right, outcome.failure


@pytest.mark.parametrize("device", ["emulator", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_the_devices_ops_are_their_definitions_and_so_are_their_parts_together(op: str, device: str) -> None:
    try:
        outcomes = check_op(op, device=device, num_cases=8 if device == "emulator" else 50)
    except DeviceError as error:
        pytest.skip(str(error))
    assert {"parts"} < {each.implementation for each in outcomes} or not OPS[op].is_fused
    for outcome in outcomes:
        assert outcome.is_right, outcome.failure


SPOILT = """
import numpy as np
from tinyvllm.device import Buffer
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin
from tinyvllm_kernels.nvrtc import NvrtcKernels

class Spoilt(NvrtcKernels):
    '''The built-in kernels, each result a quarter too large in its last row.'''
    def bind(self, op, context):
        inner, memory = super().bind(op, context), context.gpu.memory
        def spoilt(*arguments):
            inner(*arguments)
            out = arguments[0]
            array = np.array(memory.download(out))
            array[-1] = array[-1] * 1.25 + (1 if array.dtype == np.int32 else 0)
            memory.upload(out, array)
        return spoilt

@hookimpl
def register_kernels():
    return [Plugin("spoilt", Spoilt)]
"""


@pytest.mark.parametrize("op", OPS)
def test_a_row_that_is_a_quarter_too_large_is_wrong(op: str, tmp_path: Path) -> None:
    plugin = tmp_path / "spoilt.py"
    plugin.write_text(SPOILT)
    (outcome,) = check_op(op, device="emulator", plugins=[plugin], num_cases=12)
    assert outcome.implementation == "spoilt"
    assert outcome.failure is not None
    assert "written by the host" in outcome.failure


@pytest.mark.parametrize(
    "change",
    [
        ("i < size; i += blockDim.x) squares", "i < size - size % 32; i += blockDim.x) squares"),
        (" / size + eps", " / size"),
        ("* to_float(weight[i])", ""),
        ("block_sum(squares, scratch)", "warp_sum<32>(squares)"),
        ("out[row + i] =", "out[row + i + (row > 0 && i == 39)] ="),
    ],
)
def test_a_wrong_kernel_is_shown_with_its_input_block_and_thread(change: tuple[str, str], tmp_path: Path) -> None:
    plugin = write_own_kernel(tmp_path, change)
    (outcome,) = check_op("rms_norm", device="emulator", plugins=[plugin], num_cases=40)
    assert outcome.failure is not None
    assert "input: E=" in outcome.failure
    assert "seed=" in outcome.failure or "num_tokens=" in outcome.failure
    wrote = "written by kernel my_rms_norm, block (" in outcome.failure
    assert wrote or "written by nobody" in outcome.failure or "wrote outside the bounds" in outcome.failure


def test_a_row_whose_bits_depend_on_its_company_is_wrong_where_they_must_not(tmp_path: Path) -> None:
    """A factor within the tolerance, in company only: it turns the rounding of an element in some thousands."""
    plugin = write_own_kernel(tmp_path, (" / size + eps)", " / size + eps) * (gridDim.x > 1 ? 1.000002f : 1.0f)"))
    (subject,) = find_subjects("rms_norm", "emulator", None, [plugin])

    def found(*, batch_invariant: bool) -> str:
        cases = (
            Parameters(MODELS[2], (1,) * 7, (0,) * 7, batch_invariant=batch_invariant, seed=seed) for seed in range(40)
        )
        return "".join(str(mismatch) for case in cases for mismatch in subject.mismatches(case))

    assert "of the last row, alone and in company (batch_invariant)" in found(batch_invariant=True)
    assert not found(batch_invariant=False)


def test_the_kernel_of_the_documentation_is_right(tmp_path: Path) -> None:
    (outcome,) = check_op("rms_norm", device="emulator", plugins=[write_own_kernel(tmp_path)], num_cases=40)
    assert outcome.is_right, outcome.failure
    assert outcome.num_cases >= 40


ON_THE_CPU = """
from tinyvllm.hookspecs import hookimpl
from tinyvllm.interfaces import Plugin

class OwnSilu:
    def __init__(self, context):
        pass
    def ops(self):
        return ["silu_mul"]
    def supports(self, op, spec):
        return [] if spec.device == "cpu" else ["knows NumPy only"]
    def bind(self, op, context):
        import numpy as np
        def silu_mul(out, gate_up):
            gate, up = np.split(gate_up, 2, axis=-1)
            with np.errstate(over="ignore"):
                out[...] = gate / (1 + np.exp(-gate)) * up
        return silu_mul

@hookimpl
def register_kernels():
    return [Plugin("own_silu", OwnSilu)]
"""


@pytest.mark.parametrize("is_right", [True, False])
def test_a_kernel_of_the_cpu_is_checked_as_well(is_right: bool, tmp_path: Path) -> None:
    plugin = tmp_path / "own_silu.py"
    plugin.write_text(ON_THE_CPU if is_right else ON_THE_CPU.replace("gate, up =", "up, gate ="))
    (outcome,) = check_op("silu_mul", plugins=[plugin], num_cases=20)
    assert outcome.device == "cpu"
    assert outcome.is_right == is_right, outcome.failure


WITHOUT_BARRIER = (
    'extern "C"',
    """TINYVLLM_DEVICE float sum_of(float x, float* scratch) {
    x = warp_sum<32>(x);
    if (lane_id() == 0) scratch[warp_id()] = x;
    float sum = 0.0f;
    for (int i = 0; i < 8; ++i) sum += scratch[i];
    return sum;
}

extern "C\"""",
)


TREE = (
    """    const float scale = 1.0f / sqrtf(block_sum(squares, scratch) / size + eps);
""",
    """    __shared__ float sums[256];
    sums[threadIdx.x] = squares;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    const float scale = 1.0f / sqrtf(sums[0] / size + eps);
""",
)


@pytest.mark.parametrize("barrier", ["squares;\n    __syncthreads();", "half];\n        __syncthreads();"])
def test_a_missing_barrier_is_a_verdict_and_not_a_failure_of_the_check(barrier: str, tmp_path: Path) -> None:
    plugin = write_own_kernel(tmp_path, TREE, (barrier, barrier.split("\n")[0]))
    for _ in range(3):
        (outcome,) = check_op("rms_norm", device="emulator", plugins=[plugin], num_cases=30)
        assert outcome.failure is not None
        first = outcome.failure.splitlines()[0]
        assert re.fullmatch(
            r"differs from run to run \(\d+ of 40 wrong\): a missing barrier\? --race names the lines", first
        )
        assert "input: E=" in outcome.failure


def test_a_tree_of_sums_with_its_barriers_is_right(tmp_path: Path) -> None:
    (outcome,) = check_op("rms_norm", device="emulator", plugins=[write_own_kernel(tmp_path, TREE)], num_cases=30)
    assert outcome.is_right, outcome.failure


NOW_AND_THEN = ("= gate / (1 + np.exp(-gate)) * up", "= gate / (1 + np.exp(-gate)) * up * next(FACTORS)")


def test_results_that_are_wrong_now_and_then_are_counted(tmp_path: Path) -> None:
    """Every fourth call is wrong; a case calls once, or twice to see whether a row's bits depend on its company."""
    plugin = tmp_path / "own_silu.py"
    text = ON_THE_CPU.replace(*NOW_AND_THEN)
    plugin.write_text(
        f"import itertools\nimport numpy as np\nFACTORS = itertools.cycle(np.float32([1, 1, 1, 2])){text}"
    )
    (outcome,) = check_op("silu_mul", device="cpu", plugins=[plugin], num_cases=20)
    assert outcome.failure is not None
    found = re.match(r"differs from run to run \((\d+) of 40 wrong\)\n", outcome.failure)
    assert found is not None
    assert int(found[1]) in (10, 20, 21)


def test_an_implementation_that_raises_is_wrong_and_shows_its_line(tmp_path: Path) -> None:
    plugin = tmp_path / "own_silu.py"
    plugin.write_text(ON_THE_CPU.replace("out[...] =", "raise ValueError('spoilt')\n                out[...] ="))
    (outcome,) = check_op("silu_mul", device="cpu", plugins=[plugin], num_cases=20)
    assert outcome.failure is not None
    assert "kernel 'own_silu' of local plugin" in outcome.failure
    assert "silu_mul raised ValueError: spoilt" in outcome.failure
    assert f'File "{plugin}", line' in outcome.failure


def test_a_race_is_named_with_both_lines(tmp_path: Path) -> None:
    plugin = write_own_kernel(tmp_path, ("block_sum(", "sum_of("), WITHOUT_BARRIER)
    (outcome,) = check_sanitized("rms_norm", Sanitizer.RACE, plugins=[plugin])
    assert outcome.failure is not None
    assert "my_rms_norm.cu:5: race: write of size 4" in outcome.failure
    assert "my_rms_norm.cu:7" in outcome.failure


def test_a_load_beyond_the_end_is_named_with_its_line(tmp_path: Path) -> None:
    plugin = write_own_kernel(tmp_path, ("i < size; i += blockDim.x)\n", "i <= size; i += blockDim.x)\n"))
    (outcome,) = check_sanitized("rms_norm", Sanitizer.BOUNDS, plugins=[plugin])
    assert outcome.failure is not None
    assert "my_rms_norm.cu:10: heap-buffer-overflow" in outcome.failure


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [Sanitizer.RACE, Sanitizer.BOUNDS])
def test_nothing_is_found_in_a_right_kernel(sanitizer: Sanitizer, tmp_path: Path) -> None:
    (outcome,) = check_sanitized("rms_norm", sanitizer, plugins=[write_own_kernel(tmp_path)])
    assert outcome.is_right, outcome.failure


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [Sanitizer.RACE, Sanitizer.BOUNDS])
@pytest.mark.parametrize("op", OPS)
def test_nothing_is_found_in_the_built_in_kernels(op: str, sanitizer: Sanitizer) -> None:
    for outcome in check_sanitized(op, sanitizer):
        assert outcome.is_right, outcome.failure


@pytest.mark.parametrize(
    "change",
    [
        ("block_tables + size_t(sequence_of[token])", "block_tables + size_t(0 * sequence_of[token])"),
        (", scratch) * scale", ", scratch)"),
        ("position <= last", "position < last"),
        ("last + 1 - window", "last - window"),
        ("last + 1 - window", "last + 2 - window"),
        ("+ kv_head;", "+ 0;"),
        ("mixed = mixed * kept", "mixed = mixed"),
        ("if (is_inside) out[row]", "if (is_inside && threadIdx.x != 15) out[row]"),
    ],
)
def test_a_wrong_attention_is_shown_with_its_input_block_and_thread(change: tuple[str, str], tmp_path: Path) -> None:
    plugin = write_own_attention(tmp_path, change)
    (outcome,) = check_op("attention", device="emulator", plugins=[plugin], num_cases=30)
    assert outcome.failure is not None
    assert "input: E=" in outcome.failure
    assert "written by kernel my_attention, block (" in outcome.failure or "written by nobody" in outcome.failure


def test_an_attention_whose_rows_depend_on_their_company_is_wrong_where_they_must_not(tmp_path: Path) -> None:
    change = ("from_float<bf16>(mixed / total)", "from_float<bf16>(mixed / total * (gridDim.x > 1 ? 1.000002f : 1.0f))")
    (subject,) = find_subjects("attention", "emulator", None, [write_own_attention(tmp_path, change)])

    def found(*, batch_invariant: bool) -> str:
        cases = (
            Parameters(MODELS[4], (1,) * 7, (3,) * 7, batch_invariant=batch_invariant, seed=seed) for seed in range(20)
        )
        return "".join(str(mismatch) for case in cases for mismatch in subject.mismatches(case))

    assert "of the last row, alone and in company (batch_invariant)" in found(batch_invariant=True)
    assert not found(batch_invariant=False)


def test_a_race_of_an_attention_is_named(tmp_path: Path) -> None:
    line = "const float score = block_sum(product, scratch) * scale"
    change = (line, "scratch[0] = product;\n        const float score = scratch[0] * scale")
    (outcome,) = check_sanitized("attention", Sanitizer.RACE, plugins=[write_own_attention(tmp_path, change)])
    assert outcome.failure is not None
    assert "my_attention.cu" in outcome.failure
    assert "race: write of size 4" in outcome.failure


def test_what_cannot_be_checked_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no op 'rms_nrom'; did you mean 'rms_norm'"):
        check_op("rms_nrom")
    with pytest.raises(ConfigError, match="my_rms_norm does not implement silu_mul; it implements rms_norm"):
        check_op("silu_mul", plugins=[write_own_kernel(tmp_path)])
    with pytest.raises(ConfigError, match="reference cannot serve rms_norm: runs on the CPU, not on emulator"):
        check_op("rms_norm", device="emulator", implementation="reference")
    with pytest.raises(ConfigError, match="linear is not made of parts on cpu"):
        check_op("linear", device="cpu", implementation="parts")
    with pytest.raises(ConfigError, match="attention my_attention cannot serve: is a CUDA source, for"):
        check_op("attention", device="cpu", plugins=[write_own_attention(tmp_path)])
    with pytest.raises(PluginError, match="no attention plugin 'pagd'; did you mean 'paged'"):
        check_op("attention", implementation="pagd")
    with pytest.raises(PluginError, match="no kernel plugin 'nvrcc'; did you mean 'nvrtc'"):
        check_op("linear", implementation="nvrcc")
    with pytest.raises(ConfigError, match=r"there is no op 'rope'; the ops are embedding, .*, attention"):
        check_op("rope")
