"""The sizes of a model, and the letters that every docstring uses for them.

``T`` tokens in a step, ``B`` sequences, ``H`` query heads, ``K`` KV heads, ``D`` head size,
``E`` hidden size, ``F`` MLP width, ``V`` vocabulary, ``L`` layers, ``M`` most blocks of one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinyvllm.errors import ShapeError

# An n-dimensional array of a device: numpy.ndarray on the CPU. Kept opaque so that the
# same model code runs over arrays that live elsewhere.
Array: TypeAlias = Any

Int32: TypeAlias = NDArray[np.int32]
Float32: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of one model.

    Attributes:
        num_layers: ``L``.
        hidden_size: ``E``.
        num_heads: ``H``, query heads.
        num_kv_heads: ``K``; ``H`` is a multiple of it.
        head_dim: ``D``; ``H * D`` need not be ``E``.
        intermediate_size: ``F``.
        vocab_size: ``V``.
        max_position_embeddings: the longest context that the checkpoint was made for.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int


def check_shape(what: str, got: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    """Return if ``got`` matches ``expected``, where ``None`` stands for any size.

    Raises:
        ShapeError: naming ``what``, the shape got and the one expected.
    """
    if len(got) == len(expected):
        for size, wanted in zip(got, expected, strict=True):  # a plain loop: this runs dozens of times a step
            if wanted is not None and size != wanted:
                break
        else:
            return
    shown = ", ".join("any" if e is None else str(e) for e in expected)
    raise ShapeError(f"{what} has shape {list(got)}, expected [{shown}]")
