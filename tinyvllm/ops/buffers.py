"""What every launcher needs: the sources' folder, checks of buffers, scalars as kernel arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinyvllm.device import Buffer
from tinyvllm.errors import ShapeError
from tinyvllm.shapes import check_shape

WARP_SIZE = 32
VECTOR = 8
"""Elements of bfloat16 in the 16 bytes of one load."""
VECTOR_BYTES = 16
HOPPER_ARCH = 90
"""Of the cards that have ``wgmma`` and the copy engine as sm_90a does."""


def beside(file: str, name: str) -> Path:
    """The source ``name`` in the folder of a Python file, which gives its ``__file__``."""
    return Path(file).with_name(name)


def check_buffer(what: str, buffer: Buffer, shape: tuple[int | None, ...], dtype: np.dtype[np.generic]) -> None:
    """Return if the buffer has this shape (None: any size) and dtype.

    Raises:
        ShapeError: naming ``what``, what was got and what was expected.
    """
    if buffer.shape != shape:  # one comparison where no size is free: this runs thousands of times a step
        check_shape(what, buffer.shape, shape)
    if buffer.dtype != dtype:
        raise ShapeError(f"{what} has dtype {buffer.dtype}, expected {dtype}")


def check_multiple(what: str, size: int, factor: int) -> None:
    """Return if ``size`` is a positive multiple of ``factor``.

    Raises:
        ShapeError: it is not.
    """
    if size < 1 or size % factor:
        raise ShapeError(f"{what} is {size}, the kernel needs a positive multiple of {factor}")


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def round_up(size: int, factor: int) -> int:
    """The least multiple of ``factor`` that is not below ``size``."""
    return ceil_div(size, factor) * factor
