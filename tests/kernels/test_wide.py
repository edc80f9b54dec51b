"""gate_up_silu_wide and linear_residual_wide, which only Hopper has, against their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvllm.device import Buffer, Gpu
from tinyvllm.devices.emulator.device import EmulatorDevice
from tinyvllm.errors import ShapeError
from tinyvllm.interfaces import BindContext
from tinyvllm.layers import ROWS, Linear, Norm
from tinyvllm.testing.fused_cases import GateUpCase
from tinyvllm.testing.parameters import MODELS, Parameters
from tinyvllm.testing.subject import spec_of
from tinyvllm.workspace import StepLimits, Workspace
from tinyvllm_kernels import hopper as hopper_plugin
from tinyvllm_kernels.wide.gate_up_silu_wide import GateUpSiluWide
from tinyvllm_kernels.wide.linear_residual_wide import LinearResidualWide
from tinyvllm_kernels.wide.wide import BATCH_ROWS, has_wide_cores

from .support import BF16, bf16, f64, get, once, poisoned, put, rows_of_many_scales
from .test_projections import EPS, assert_gate_up_silu, assert_linear_residual, random_layer

linear_residual = once(LinearResidualWide)
gate_up_silu = once(GateUpSiluWide)

# Rows of x, columns: a ring that is full at once, one that turns round several times, ragged ends of either, no whole
# stage, one tile or several, and blocks that share a row.
LAYERS = ((512, 64), (2112, 64), (1096, 200), (40, 72), (192, 24), (1024, 128))
MLPS = ((192, 64), (1544, 72), (40, 136), (2048, 8))

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="session")
def hopper(device: Gpu) -> Gpu:
    """Each device that has the instructions."""
    if not has_wide_cores(device):
        pytest.skip(f"{device.properties.name} is no Hopper")
    return device


@settings(max_examples=20, deadline=None)
@given(
    layer=st.sampled_from(LAYERS),
    batch_rows=st.sampled_from(BATCH_ROWS),
    rows=st.integers(1, 260),
    has_bias=st.booleans(),
    seed=seeds,
)
def test_a_linear_layer_is_its_definition(
    hopper: Gpu, layer: tuple[int, int], batch_rows: int, rows: int, has_bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size_k, num_outputs = layer
    rows = 1 + rows % (batch_rows + 3)  # at times more than a block's
    x, weight = rows_of_many_scales(rng, (rows, size_k)), random_layer(rng, size_k, num_outputs)
    bias = bf16(rng.standard_normal(num_outputs) * 100) if has_bias else None
    residual = rows_of_many_scales(rng, (rows, num_outputs))
    run = linear_residual(
        hopper, in_features=size_k, out_features=num_outputs, batch_rows=batch_rows,
        max_rows=batch_rows if rows <= batch_rows else 2 * batch_rows,
    )  # fmt: skip
    out = put(hopper, residual)
    run(out, put(hopper, x), put(hopper, weight), None if bias is None else put(hopper, bias))

    assert_linear_residual(get(hopper, out), x, weight, bias, residual)


@settings(max_examples=15, deadline=None)
@given(
    mlp=st.sampled_from(MLPS),
    batch_rows=st.sampled_from(BATCH_ROWS),
    rows=st.integers(1, 260),
    x_scale=st.sampled_from((1.0, 1e-20, 1e12)),
    seed=seeds,
)
def test_gate_up_silu_is_the_composition_of_its_parts(
    hopper: Gpu, mlp: tuple[int, int], batch_rows: int, rows: int, x_scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size_k, size_f = mlp
    rows = 1 + rows % (batch_rows + 3)
    x = bf16(f64(rows_of_many_scales(rng, (rows, size_k))) * x_scale)
    weight = bf16(rng.standard_normal((2 * size_f, size_k)) * 3 / size_k**0.5)
    norm = Norm(f64(bf16(rng.uniform(0.25, 4.0, size_k))), EPS)
    run = gate_up_silu(
        hopper, hidden_size=size_k, intermediate_size=size_f, eps=EPS, batch_rows=batch_rows, max_rows=2 * batch_rows
    )
    out = poisoned(hopper, (rows, size_f))
    run(out, put(hopper, x), put(hopper, bf16(norm.weight)), put(hopper, weight))

    assert_gate_up_silu(get(hopper, out), x, norm, weight, 1)


def test_rows_that_are_nan_do_not_touch_the_others(hopper: Gpu) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((35, 512)), random_layer(rng, 512, 64)
    x[2] = np.nan
    run = linear_residual(hopper, in_features=512, out_features=64, batch_rows=64)
    out = put(hopper, bf16(np.zeros((35, 64))))
    run(out, put(hopper, bf16(x)), put(hopper, weight))
    assert np.isnan(f64(get(hopper, out))).all(axis=1).tolist() == [row == 2 for row in range(35)]


def test_a_launcher_can_be_called_again_at_once(hopper: Gpu) -> None:
    """Blocks that share a row count on, and nothing of the last call is left."""
    rng = np.random.default_rng(0)
    x, weight = put(hopper, bf16(rng.standard_normal((50, 1024)))), put(hopper, random_layer(rng, 1024, 64))
    residual = put(hopper, bf16(np.zeros((50, 64))))
    run = linear_residual(hopper, in_features=1024, out_features=64, batch_rows=64)
    seen = []
    for _ in range(3):
        hopper.memory.fill(residual, 0)
        run(residual, x, weight)
        seen.append(get(hopper, residual).view(np.uint16))
    assert (seen[0] == seen[1]).all()
    assert (seen[0] == seen[2]).all()


def test_dependent_launches_wait_for_what_they_read(hopper: Gpu) -> None:
    """Each reads what the one before has written; on the emulator that is NaN until it has ended."""
    rng = np.random.default_rng(1)
    residual, norm = bf16(rng.standard_normal((40, 64))), bf16(rng.uniform(0.5, 1.5, 64))
    gate_up, down = (bf16(rng.standard_normal(shape) / 20) for shape in ((1024, 64), (64, 512)))
    first = gate_up_silu(hopper, hidden_size=64, intermediate_size=512, eps=EPS, batch_rows=64)
    second = linear_residual(hopper, in_features=512, out_features=64, batch_rows=64)
    weights = [put(hopper, each) for each in (norm, gate_up, down)]

    def run(synchronised: bool) -> np.ndarray:
        stream, hidden = put(hopper, residual), poisoned(hopper, (40, 512))
        for _ in range(2):
            first(hidden, stream, *weights[:2])
            if synchronised:
                hopper.synchronize()
            second(stream, hidden, weights[2])
            if synchronised:
                hopper.synchronize()
        return get(hopper, stream).view(np.uint16)

    apart, dependent = run(True), run(False)
    assert not np.isnan(apart.view(residual.dtype).astype(np.float32)).any()
    assert (apart == dependent).all()


def test_what_does_not_fit_is_refused(hopper: Gpu) -> None:
    with pytest.raises(ShapeError, match="multiple of 8"):
        LinearResidualWide(hopper, in_features=20, out_features=8, batch_rows=64)
    with pytest.raises(ShapeError, match="batch_rows is 32"):
        LinearResidualWide(hopper, in_features=64, out_features=8, batch_rows=32)
    with pytest.raises(ShapeError, match="needs sm_90"):
        LinearResidualWide(EmulatorDevice(arch=80), in_features=64, out_features=8, batch_rows=64)
    run = linear_residual(hopper, in_features=512, out_features=64, batch_rows=64)
    with pytest.raises(ShapeError, match="1 to 64"):
        run(poisoned(hopper, (65, 64)), poisoned(hopper, (65, 512)), poisoned(hopper, (64, 512)))


def test_more_rows_than_a_block_s_go_to_it_where_they_fill_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The projections of Llama 3.2 1B on 132 SMs: a round of blocks is 256 rows, and some SMs stay idle."""
    asked: list[int | str] = []

    class Spy:
        def __init__(self, device: Gpu, *, batch_rows: int, **_: object) -> None:
            self._batch_rows = batch_rows

        def __call__(self, *_: object) -> None:
            asked.append(self._batch_rows)

    monkeypatch.setattr(hopper_plugin, "GateUpSiluWide", Spy)
    shape = replace(MODELS[0], hidden_size=2048, intermediate_size=8192)
    device = EmulatorDevice(num_sms=132)
    spec = spec_of("emulator", Parameters(shape, (1,), (0,)), device, GateUpCase)
    workspace = Workspace(device, StepLimits(4096, 1, 4096, 16, 1, batch_invariant=False))
    bind = hopper_plugin._BINDERS["rms_norm_gate_up_silu"]
    run = bind(BindContext(spec, lambda _: asked.append, workspace), lambda *_: asked.append("otherwise"))
    norm, layer = Norm(np.ones(1), EPS), Linear(np.ones(1), None, ROWS, 2048, 2 * 8192)
    expected: dict[int, list[int | str]] = {
        16: ["otherwise"], 17: [64], 64: [64], 65: [128], 128: [128], 129: [256], 256: [256],
        320: ["otherwise"], 448: ["otherwise"], 512: [256], 576: ["otherwise"], 960: ["otherwise"], 1024: [256],
        1088: ["otherwise"], 2048: [256], 2100: [256, 64], 4000: [256, 256],
    }  # fmt: skip
    for num_rows, versions in expected.items():
        asked.clear()
        x = Buffer(0, (num_rows, 2048), BF16, None)
        run(x, x, norm, layer)
        assert asked == versions, num_rows
