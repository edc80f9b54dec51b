"""The header of a safetensors file, checked in full before a byte of data is read.

The format (github.com/huggingface/safetensors): eight bytes, little-endian, with the size of the header; the
header, a JSON object from tensor name to ``dtype``, ``shape`` and ``data_offsets``; then the data. The library's
own parser lets duplicate names and unknown fields pass, this one does not. Knows nothing about models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyvllm._checkpoint_file import what_it_is
from tinyvllm._shown import shown
from tinyvllm.plugin import LoadError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_DIMENSIONS = 64  # NumPy's limit
METADATA = "__metadata__"

# Bits of one element, of every dtype that the format names.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: dtype, shape, and where its bytes lie, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_size(first: bytes, file_size: int, where: str) -> int:
    """The size in bytes of the header, which the first eight bytes of a file announce.

    Args:
        first: the beginning of the file; ``FIRST_BYTES`` of it say what the file is where it is no safetensors file.
        file_size: in bytes.
        where: the file, for messages.
    Raises:
        LoadError: the file is too short, the header too large, or the file is another kind of file.
    """
    size = int.from_bytes(first[:LENGTH_BYTES], "little")
    if not LENGTH_BYTES < LENGTH_BYTES + size <= min(file_size, MAX_HEADER_BYTES + LENGTH_BYTES):
        what = what_it_is(first)
        if what is not None:
            raise LoadError(f"{where}: {what}")
    if len(first) < LENGTH_BYTES:
        raise LoadError(f"{where}: not a safetensors file: {len(first)} bytes, expected at least {LENGTH_BYTES}")
    if size > MAX_HEADER_BYTES:
        raise LoadError(
            f"{where}: not a safetensors file: a header of {size} bytes is announced, the limit is {MAX_HEADER_BYTES}"
        )
    if size > file_size - LENGTH_BYTES:
        raise LoadError(
            f"{where}: a header of {size} bytes is announced, but only {file_size - LENGTH_BYTES} bytes follow; "
            "the file is truncated, fetch it again"
        )
    return size


def parse_header(raw: bytes, data_size: int, where: str) -> dict[str, Entry]:
    """The tensors that a header describes, checked against each other and the size of the data.

    Args:
        raw: the header's bytes.
        data_size: bytes that follow the header.
        where: the file, for messages.
    Raises:
        LoadError: anything at all is wrong with it.
    """
    if raw[:1] != b"{":
        raise LoadError(f"{where}: the header is not a JSON object")
    header = parse_json_object(raw, f"{where}: header")
    _check_metadata(header.pop(METADATA, {}), where)
    entries = {name: _entry(value, data_size, f"{where}: tensor {shown(name)}") for name, value in header.items()}
    _check_layout(entries, data_size, where)
    return entries


def parse_json_object(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``raw``: UTF-8, every name once on each level, no NaN.

    Raises:
        LoadError: it is anything else.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise LoadError(f"{where}: JSON is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError and integers of thousands of digits among them
        raise LoadError(f"{where}: not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise LoadError(f"{where}: expected a JSON object, got {shown(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{shown(name)} is there twice")
            seen.add(name)
    return unique


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _check_metadata(metadata: Any, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LoadError(f"{where}: {METADATA} must map strings to strings, got {shown(metadata)}")


def _entry(value: Any, data_size: int, where: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        got = f"the fields {shown(sorted(value))}" if isinstance(value, dict) else shown(value)
        raise LoadError(f"{where}: expected exactly the fields dtype, shape and data_offsets, got {got}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise LoadError(f"{where}: unknown dtype {shown(dtype)}; the format has {', '.join(DTYPE_BITS)}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise LoadError(f"{where}: shape must be a list of at most {MAX_DIMENSIONS} sizes, got {shown(shape)}")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise LoadError(f"{where}: data_offsets must be two sizes, begin and end, got {shown(offsets)}")
    start, end = offsets
    if not start <= end <= data_size:
        raise LoadError(
            f"{where}: data_offsets {shown(offsets)} do not lie in order within the {data_size} bytes of data; "
            "the file is truncated or damaged, fetch it again"
        )
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - start):
        raise LoadError(
            f"{where}: shape {shown(shape)} of {dtype} is {shown(bits // 8)} bytes, but data_offsets hold {end - start}"
        )
    return Entry(dtype, tuple(shape), start, end)


def _is_sizes(value: Any) -> bool:
    """Whether it is a list of integers from 0 to 2**63 - 1; JSON's true and 1.0 are none."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_layout(entries: Mapping[str, Entry], data_size: int, where: str) -> None:
    """Tensors lie one after the other: no hole, no overlap, and nothing after the last.

    ::

        data  |--- a ---|--- b ---|-- c --|
              0         a.end     b.end   c.end == data_size
    """
    previous, covered = "", 0
    for name, entry in sorted(entries.items(), key=_position):
        if entry.start != covered:
            what = "overlaps" if entry.start < covered else "leaves a hole after"
            neighbour = f"tensor {shown(previous)}" if previous else "the header"
            raise LoadError(
                f"{where}: tensor {shown(name)} {what} {neighbour}: it begins at byte {entry.start}, expected {covered}"
            )
        previous, covered = name, entry.end
    if covered != data_size:
        raise LoadError(f"{where}: {data_size - covered} bytes follow the last tensor, expected none")


def _position(item: tuple[str, Entry]) -> tuple[int, int]:
    return item[1].start, item[1].end
