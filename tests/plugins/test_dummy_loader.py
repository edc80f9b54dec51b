from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyvllm.errors import LoadError
from tinyvllm.interfaces import Checkpoint, Loader, OpenCall
from tinyvllm_loaders.dummy import SIGMA, DummyLoader

SHAPES = {"embed.weight": (400, 256), "norm.weight": (256,), "scalar": (), "empty": (0, 3), "odd": (65_537,)}


def open_dummy(seed: int = 0, dtype: str = "BF16", shapes: dict[str, tuple[int, ...]] = SHAPES) -> Checkpoint:
    return DummyLoader(None).open(OpenCall(Path("nowhere"), shapes, dtype, seed))  # type: ignore[arg-type]


def read_all(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.names()}


def test_every_expected_tensor_is_there_in_its_shape_and_dtype() -> None:
    assert isinstance(DummyLoader(None), Loader)  # type: ignore[arg-type]
    for dtype, size in (("F32", 4), ("F16", 2), ("BF16", 2)):
        checkpoint = open_dummy(dtype=dtype)
        assert list(checkpoint.names()) == list(SHAPES)
        for name, shape in SHAPES.items():
            tensor = checkpoint.read(name)
            assert checkpoint.meta(name).shape == tensor.shape == shape
            assert checkpoint.meta(name).dtype == dtype
            assert tensor.dtype.itemsize == size
            assert tensor.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "bfloat16"])
def test_weights_are_normal_with_sigma_0_02_and_never_zero(dtype: str) -> None:
    weights = np.sort(open_dummy(dtype=dtype, shapes={"w": (200_000,)}).read("w").astype(np.float64))
    n = len(weights)
    assert np.all(weights != 0)
    assert abs(weights.mean()) < 5 * SIGMA / math.sqrt(n)
    assert abs(weights.std() / SIGMA - 1) < 5 / math.sqrt(2 * n)
    # Kolmogorov and Smirnov: the distance of the distribution functions; 1.95 / sqrt(n) is exceeded once in 1,000.
    # bfloat16 rounds to 8 bits, so each of its values gathers up to 0.4 % of the range around it.
    expected = np.array([0.5 * (1 + math.erf(w / SIGMA / math.sqrt(2))) for w in weights])
    distance = np.abs(expected - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.95 / math.sqrt(n) + (2**-9 if dtype in ("BF16", "bfloat16") else 0)


def test_neighbours_rows_and_tensors_are_not_alike() -> None:
    checkpoint = open_dummy(dtype="F32", shapes={"a": (512, 512), "b": (512, 512)})
    a, b = (checkpoint.read(name).astype(np.float64) / SIGMA for name in "ab")
    for other in (b, np.roll(a, 1, axis=0), np.roll(a, 1, axis=1), np.roll(a, 4, axis=1), a.T):
        assert abs((a * other).mean()) < 6 / 512  # of 512 * 512 products of independent normals
    assert np.linalg.matrix_rank(a) == 512


def test_a_tensor_depends_on_seed_name_and_nothing_else() -> None:
    first = read_all(open_dummy(seed=3))
    assert read_all(open_dummy(seed=3)) == first
    backwards = open_dummy(seed=3)
    assert {name: backwards.read(name).tobytes() for name in reversed(list(SHAPES))} == first
    alone = open_dummy(seed=3, shapes={"odd": SHAPES["odd"]})
    assert alone.read("odd").tobytes() == first["odd"]
    other = read_all(open_dummy(seed=4))
    assert all(other[name] != first[name] for name in ("embed.weight", "norm.weight", "odd"))


def test_the_values_are_the_same_on_every_machine() -> None:
    values: list[Any] = open_dummy(seed=0, dtype="F32", shapes={"w": (4,)}).read("w").tolist()
    assert values == pytest.approx([0.0202565752, -0.0159354601, -0.0293262731, -0.0121836290], rel=1e-6)


def test_a_longer_tensor_begins_as_a_shorter_one_of_its_name() -> None:
    short, long = (open_dummy(shapes={"w": (n,)}).read("w") for n in (70_001, 200_000))
    assert np.array_equal(short, long[:70_001])


def test_unknown_dtypes_names_and_closed_checkpoints_are_load_errors() -> None:
    with pytest.raises(LoadError, match="dtype 'I8' is none of float32, float16, bfloat16"):
        open_dummy(dtype="I8")
    checkpoint = open_dummy()
    with pytest.raises(LoadError, match="no tensor 'nothing'"):
        checkpoint.read("nothing")
    checkpoint.close()
    with pytest.raises(LoadError, match="closed"):
        checkpoint.read("odd")
