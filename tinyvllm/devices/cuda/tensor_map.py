"""Matrices described to the copy engine of a Hopper card, by the driver."""

from __future__ import annotations

import ctypes
from typing import Any

from tinyvllm.device import Buffer, TensorMap
from tinyvllm.devices.cuda.driver import Driver

_WORDS_BYTES = 128
_BOX_COLUMNS = 64
_RUN = 8  # rows that a pair of halves takes in turn


def encode(driver: Driver, matrix: Buffer, box_rows: int, *, paired: bool) -> TensorMap:
    """The map of ``matrix`` with boxes of ``box_rows`` rows; see ``Device.tensor_map``.

    Raises:
        DeviceError: the driver refuses it: an address or a row that is no multiple of 16 bytes.
    """
    api = driver.api
    num_rows, num_columns = matrix.shape
    row_bytes = num_columns * matrix.dtype.itemsize
    if paired:  # columns, rows of a run, halves, runs
        half = num_rows // 2
        sizes, box = [num_columns, _RUN, 2, half // _RUN], [_BOX_COLUMNS, _RUN, 2, box_rows // (2 * _RUN)]
        strides = [row_bytes, half * row_bytes, _RUN * row_bytes]
    else:
        sizes, box, strides = [num_columns, num_rows], [_BOX_COLUMNS, box_rows], [row_bytes]

    def chosen(kind: str, name: str) -> Any:
        return getattr(getattr(api, f"CUtensorMap{kind}"), f"CU_TENSOR_MAP_{name}")

    made = driver.call(
        api.cuTensorMapEncodeTiled,
        chosen("DataType", "DATA_TYPE_BFLOAT16"),
        len(sizes),
        matrix.pointer,
        [api.cuuint64_t(size) for size in sizes],
        [api.cuuint64_t(stride) for stride in strides],
        [api.cuuint32_t(size) for size in box],
        [api.cuuint32_t(1)] * len(sizes),
        chosen("Interleave", "INTERLEAVE_NONE"),
        chosen("Swizzle", "SWIZZLE_128B"),
        chosen("L2promotion", "L2_PROMOTION_L2_256B"),
        chosen("FloatOOBfill", "FLOAT_OOB_FILL_NONE"),
    )
    return TensorMap(ctypes.string_at(int(made.getPtr()), _WORDS_BYTES), matrix)
